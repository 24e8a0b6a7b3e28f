//! Converts `openapi.yaml` to JSON, so that the program needs no YAML reader.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=openapi.yaml");
    let document: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string("openapi.yaml")?)?;
    let folder = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    Ok(std::fs::write(Path::new(&folder).join("openapi.json"), serde_json::to_string(&document)?)?)
}
