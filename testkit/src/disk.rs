//! The library between the real program and its disk: see `disk.c`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds it in `folder`; `None` where there is no C compiler. In CI there is one.
pub fn library(folder: &Path, test: &str) -> Option<PathBuf> {
    let library = folder.join("disk.so");
    let built = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".into()))
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
        .arg(&library)
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/src/disk.c"), "-ldl", "-lpthread"])
        .status();
    match built {
        Ok(status) => {
            assert!(status.success(), "the library can be built");
            Some(library)
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "CI has a C compiler: {error}");
            println!("{test} did not run: there is no C compiler ({error})");
            None
        }
    }
}
