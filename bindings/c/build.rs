//! Gives the shared library the name under which programs look for it.
//!
//! Cargo calls the file `libaxiscap_c.so`, and `scripts/install-c` installs it as `libaxiscap.so.0.1.0`. The
//! name that a linker copies into programs, the soname, is in the file and has to be set when it is linked.
//! It holds the part of the version that changes with the interface: the major version, and before 1.0 the
//! minor one as well.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        let (major, minor) = (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
        let interface = if major == "0" { format!("0.{minor}") } else { major.to_owned() };
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libaxiscap.so.{interface}");
    }
}
