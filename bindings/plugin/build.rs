//! Has the plugin stay loaded until the process ends.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        // ggml's devices and backends point to functions of the plugin, also after the host has closed it.
        println!("cargo::rustc-link-arg-cdylib=-Wl,-z,nodelete");
        println!("cargo::rustc-link-arg-cdylib=-Wl,-soname,libggml-axiscap.so");
    }
}
