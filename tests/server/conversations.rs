//! Whole conversations of devices with the server, over its API, from files.

use rollcall_testkit::conversation;

use conversation::{Conversation, FOLDER};

/// Goal: devices receive what each file describes, and the server ends in the described state. Method: one
/// file for each conversation; all failures are reported at once.
#[tokio::test]
async fn every_written_conversation_goes_as_told() {
    let entries = std::fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|ext| ext == "json")).collect();
    paths.sort();
    assert!(paths.len() >= 50, "only {} conversations found: a moved folder must not pass", paths.len());

    let (mut faults, mut titles) = (Vec::new(), Vec::new());
    for path in paths {
        let conversation = match Conversation::read(&path) {
            Ok(conversation) => conversation,
            Err(error) => {
                faults.push(format!("{}\n  cannot be read: {error}", path.display()));
                continue;
            }
        };
        if let Err(fault) = conversation.run().await {
            faults.push(format!("{}: {}\n  {fault}", path.display(), conversation.title));
        }
        titles.push(conversation.title);
    }
    assert!(faults.is_empty(), "{} conversations go otherwise\n\n{}\n", faults.len(), faults.join("\n\n"));
    titles.sort_unstable();
    let twice: Vec<_> = titles.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "titles that come twice: {twice:?}");
}

/// Goal: both engines behave alike. Method: every test of this file once more, over PostgreSQL.
#[test]
fn again_on_postgres() {
    conversation::engine::run_again_on_postgres(module_path!());
}

/// Goal: nothing needs two owners in one database. Method: once more, over four databases as shards.
#[test]
fn again_over_shards() {
    conversation::engine::run_again_over_shards(module_path!());
}

/// Goal: no statement counts on the connection of the one before, but within a transaction. Method: once more, through
/// poolers in transaction mode, without prepared statements.
#[test]
fn again_through_poolers() {
    conversation::engine::run_again_through_poolers(module_path!());
}
