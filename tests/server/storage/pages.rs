//! Pages of the manifest among tombstones: how many entries each reads.

use rollcall::digest::Digest;
use rollcall::fetch::{self, FetchError, Page, PageMax, PageToken, Sink};

use super::*;

/// Takes a page down.
#[derive(Default)]
struct Taken(Vec<(TableId, RowKey)>, Option<TableId>);

impl Sink for Taken {
    fn table(&mut self, table: TableId) {
        self.1 = Some(table);
    }
    fn row(&mut self, key: RowKey, _: Timestamp) {
        self.0.push((self.1.unwrap(), key));
    }
    fn pass_on(&mut self) -> std::ops::ControlFlow<()> {
        std::ops::ControlFlow::Continue(())
    }
}

fn page(
    ground: &Ground,
    from: Option<PageToken>,
    most: PageMax,
) -> Result<(Page, Vec<(TableId, RowKey)>), FetchError> {
    let asked = [ground.table("parents"), ground.table("things")];
    ground.storage.read(owner(1), |txn| {
        let page = fetch::page(txn, &asked, from, most)?;
        let (mut progress, mut taken) = (page.begin(), Taken::default());
        assert!(fetch::run(txn, &asked, &page, &mut progress, &mut taken)?);
        Ok((page, taken.0))
    })
}

/// Of two tables, by key: which entries are live rows.
type Entries = [Vec<(u128, bool)>; 2];

/// Live rows and tombstones, with a digest that counts the live ones.
fn furnish(ground: &Ground, entries: &Entries) {
    let tables = [ground.table("parents"), ground.table("things")];
    ground
        .storage
        .write(owner(1), |txn| {
            let version = txn.state().version.next();
            let mut state = OwnerState { version, ..txn.state() };
            let mut digests = Vec::new();
            for (table, entries) in tables.iter().zip(entries) {
                let live = entries.iter().filter(|(_, live)| *live).count() as u64;
                let values = if *table == tables[0] { 1 } else { 10 };
                let rows: Vec<_> = entries
                    .iter()
                    .map(|(n, live)| (key(*n), row(version, live.then(|| vec![Value::Null; values]))))
                    .collect();
                txn.put(*table, &by_reference(&rows))?;
                digests.push((*table, Digest { count: live, root: 0 }));
                state.past.tombstones += (entries.len() as u64 - live).cast_signed();
            }
            txn.advance(state, &digests, Timestamp::from_ms(0))
        })
        .unwrap();
}

/// How many entries lie on a page: between its beginning and that of the next one.
fn looked_at(entries: &Entries, from: Option<PageToken>, next: Option<PageToken>) -> usize {
    let place = |mark: PageToken| (mark.table, mark.after.map_or(0, |after| after.0.as_u128() + 1));
    let (from, next) = (from.map_or((0, 0), place), next.map_or((2, 0), place));
    let places =
        entries.iter().enumerate().flat_map(|(table, list)| list.iter().map(move |(n, _)| (table, *n)));
    places.filter(|(table, n)| (*table, *n) >= from && (*table, *n) < next).count()
}

/// Goal: a page reads a bounded number of entries, whatever was deleted, and all pages are complete together.
/// Method: tombstones before, between and behind the rows of two tables; pages of several sizes, each
/// measured in entries.
#[test]
fn a_page_among_tombstones_looks_at_few_entries() {
    let all = |from: u128, to: u128, every: u128| -> Vec<(u128, bool)> {
        (from..to).map(|n| (n, every > 0 && n % every == 0)).collect()
    };
    for entries in [
        [all(1, 300, 0), all(1, 40, 1)],
        [all(1, 300, 50), all(1, 300, 7)],
        [[all(1, 60, 1), all(60, 200, 0), all(200, 210, 1)].concat(), all(1, 100, 0)],
    ] {
        on_every_engine(|ground| {
            furnish(ground, &entries);
            let tables = [ground.table("parents"), ground.table("things")];
            let live: Vec<_> = tables
                .iter()
                .zip(&entries)
                .flat_map(|(table, list)| {
                    list.iter().filter(|(_, live)| *live).map(move |(n, _)| (*table, key(*n)))
                })
                .collect();
            for (rows, tombstones) in [(1, 10), (5, 20), (8, 1), (1_000, 30), (1_000, 10_000)] {
                let most = PageMax { rows, tombstones };
                let (mut from, mut result, mut pages) = (None, Vec::new(), 0);
                loop {
                    let (page, taken) = page(ground, from, most).unwrap();
                    let looked = looked_at(&entries, from, page.next);
                    assert!(looked <= rows + tombstones, "{looked} entries for {most:?} from {from:?}");
                    assert!(taken.len() <= rows && taken.len() as u64 == page.rows);
                    result.extend(taken);
                    pages += 1;
                    from = page.next;
                    if from.is_none() {
                        break;
                    }
                }
                assert_eq!(result, live, "{most:?}");
                let least = (entries[0].len() + entries[1].len()) / (rows + tombstones);
                assert!(
                    pages >= least && pages <= least + live.len() / rows + 2,
                    "{pages} pages for {most:?}"
                );
            }
        });
    }
}

/// Goal: an owner whose tombstones were never counted has bounded pages too, and a wrong page token is
/// refused.
#[test]
fn a_page_is_bounded_where_nothing_is_counted_and_a_wrong_mark_is_refused() {
    on_every_engine(|ground| {
        let entries = [(1..500).map(|n| (n, n > 490)).collect(), Vec::new()];
        furnish(ground, &entries);
        ground
            .storage
            .write(owner(1), |txn| {
                let past = rollcall::storage::PastBytes { is_counted: false, ..txn.state().past };
                txn.set_past(past)
            })
            .unwrap();
        let most = PageMax { rows: 20, tombstones: 30 };
        let (first, taken) = page(ground, None, most).unwrap();
        assert!(taken.is_empty() && first.next.is_some_and(|next| next.after == Some(key(50))), "{first:?}");
        let next = first.next.unwrap();
        for wrong in [PageToken { rows_before: 3, ..next }, PageToken { after: Some(key(495)), ..next }] {
            let mut from = Some(wrong);
            let refused = loop {
                match page(ground, from, most) {
                    Ok((page, _)) => from = Some(page.next.expect("the last page is wrong")),
                    Err(error) => break error,
                }
            };
            assert!(matches!(refused, FetchError::NoSuchPage), "{refused:?}");
        }
    });
}
