use std::collections::{BTreeMap, HashSet};

use crate::http::app::App;
use crate::model::DeviceId;
use crate::schema::TableId;
use crate::synchronise::Report;

/// The counts of a batch, added to the metrics after the commit.
#[derive(Default)]
pub(super) struct Counts {
    /// How many rows got each verdict.
    verdicts: BTreeMap<&'static str, u64>,
    /// The table of each recorded conflict.
    conflicts: Vec<TableId>,
    /// How many rows the feed returned, and how many entries it read for them.
    feed: (u64, u64),
    /// Devices that no longer keep tombstones from being purged.
    pub forgotten: Vec<DeviceId>,
}

impl Counts {
    /// The counts of a repeated response: nothing was settled.
    pub fn of_replay(forgotten: Vec<DeviceId>) -> Self {
        Self { forgotten, ..Self::default() }
    }

    pub fn of(report: &Report, forgotten: Vec<DeviceId>) -> Self {
        let (mut counts, mut noted) = (Self { forgotten, ..Self::default() }, HashSet::new());
        for (table, results) in [&report.add, &report.update, &report.delete].into_iter().flatten() {
            for result in results {
                *counts.verdicts.entry(result.verdict().name()).or_default() += 1;
                let conflict = result.settled().and_then(|row| row.conflict);
                counts.conflicts.extend(conflict.filter(|id| noted.insert(*id)).map(|_| *table));
            }
        }
        let feed = report.changes.as_ref();
        counts.feed = feed.map_or((0, 0), |changes| (changes.rows.len() as u64, changes.looked as u64));
        counts
    }

    pub fn add_to(self, app: &App) {
        for (verdict, rows) in self.verdicts {
            app.metrics.settled(verdict, rows);
        }
        for table in self.conflicts {
            let table = app.schema.at(table);
            app.metrics.conflicted(&table.name, table.policy.name());
        }
        app.metrics.fed(self.feed.0, self.feed.1);
    }
}
