//! Feeds one reader, named by ROLLCALL_FUZZ_READER, with inputs that libFuzzer breeds by the code they reach. What
//! must hold of each stands with the readers. With ROLLCALL_FUZZ_SEEDS it only writes what is right into that folder.

#![no_main]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../testkit/src/readers.rs"]
mod readers;
#[path = "../testkit/src/requests.rs"]
mod requests;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

type Reader = Box<dyn Fn(&[u8]) + Send + Sync>;

fn reader() -> &'static Reader {
    static READER: OnceLock<Reader> = OnceLock::new();
    READER.get_or_init(|| {
        let name = std::env::var("ROLLCALL_FUZZ_READER").expect("ROLLCALL_FUZZ_READER names the reader");
        if let Some(folder) = std::env::var_os("ROLLCALL_FUZZ_SEEDS") {
            let seeds = if name == "request" { requests::begin_with() } else { readers::begin_with(&name) };
            for (number, input) in seeds.iter().enumerate() {
                let path = std::path::Path::new(&folder).join(format!("right-{number}"));
                std::fs::write(path, input).unwrap();
            }
            std::process::exit(0);
        }
        if name == "request" {
            return Box::new(|input| drop(requests::answer(input)));
        }
        let read = readers::reader(&name);
        Box::new(move |input| drop(read(input)))
    })
}

fuzz_target!(init: { reader(); }, |input: &[u8]| reader()(input));
