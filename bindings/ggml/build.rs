//! Has test programs export the functions of the ggml that is linked in, as a stock build of llama.cpp does.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let linux = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    if linux && std::env::var_os("CARGO_FEATURE_LINKED").is_some() {
        println!("cargo::rustc-link-arg=-rdynamic");
    }
}
