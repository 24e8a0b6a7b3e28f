/// A file inside the binary.
pub(super) struct File {
    /// Below the folder of the build: `shared/theme.js`.
    pub path: &'static str,
    pub kind: &'static str,
    pub bytes: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

macro_rules! file {
    ($kind:ident, $path:literal) => {
        File { path: $path, kind: $kind, bytes: include_bytes!($path) }
    };
}

/// A module of the built TypeScript client.
macro_rules! client {
    ($name:literal) => {
        File {
            path: concat!("client/", $name),
            kind: SCRIPT,
            bytes: include_bytes!(concat!("../../../clients/typescript/dist/", $name)),
        }
    };
}

/// All files.
pub(super) const FILES: &[File] = &[
    file!(STYLE, "shared/base.css"),
    file!(SCRIPT, "shared/dom.js"),
    file!(SCRIPT, "shared/format.js"),
    file!(IMAGE, "shared/icon.svg"),
    file!(SCRIPT, "shared/json.js"),
    file!(SCRIPT, "shared/theme.js"),
    file!(SCRIPT, "demo/conflicts.js"),
    file!(SCRIPT, "demo/device.js"),
    file!(HTML, "demo/index.html"),
    file!(SCRIPT, "demo/link.js"),
    file!(SCRIPT, "demo/main.js"),
    file!(STYLE, "demo/middle.css"),
    file!(SCRIPT, "demo/network.js"),
    file!(SCRIPT, "demo/observer.js"),
    file!(STYLE, "demo/phone.css"),
    file!(SCRIPT, "demo/phone.js"),
    file!(SCRIPT, "demo/proof.js"),
    file!(SCRIPT, "demo/rows.js"),
    file!(STYLE, "demo/share.css"),
    file!(SCRIPT, "demo/share.js"),
    file!(STYLE, "demo/stage.css"),
    file!(SCRIPT, "demo/steps.js"),
    file!(SCRIPT, "demo/tables.js"),
    file!(SCRIPT, "demo/tabs.js"),
    file!(STYLE, "demo/tour.css"),
    file!(SCRIPT, "demo/tour.js"),
    file!(STYLE, "demo/wire.css"),
    file!(SCRIPT, "demo/wire.js"),
    file!(SCRIPT, "demo/words.js"),
    file!(SCRIPT, "console/api.js"),
    file!(SCRIPT, "console/charts.js"),
    file!(SCRIPT, "console/conflicts.js"),
    file!(STYLE, "console/console.css"),
    file!(HTML, "console/index.html"),
    file!(SCRIPT, "console/locks.js"),
    file!(SCRIPT, "console/main.js"),
    file!(SCRIPT, "console/overview.js"),
    file!(SCRIPT, "console/owner.js"),
    file!(SCRIPT, "console/owners.js"),
    file!(SCRIPT, "console/sign_in.js"),
    file!(SCRIPT, "console/why.js"),
    client!("batch.js"),
    client!("calls.js"),
    client!("client.js"),
    client!("decide.js"),
    client!("digest.js"),
    client!("edits.js"),
    client!("error.js"),
    client!("held.js"),
    client!("identity.js"),
    client!("index.js"),
    client!("indexeddb.js"),
    client!("key.js"),
    client!("live.js"),
    client!("memory.js"),
    client!("owners.js"),
    client!("part.js"),
    client!("settle.js"),
    client!("sync.js"),
    client!("time.js"),
    client!("turn.js"),
];
