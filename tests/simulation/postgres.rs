//! PostgreSQL as the disk of a simulation.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use postgres::{Client, NoTls};
use rollcall::model::Timestamp;
use rollcall::schema::Schema;
use rollcall::storage::Storage;
use rollcall::storage::postgres::Connections;

use crate::engine::{Engine, Store, terms};
use crate::server::Disk;

const WAIT: Duration = Duration::from_secs(5);

const TABLES: &str = "SELECT tablename::text FROM pg_tables WHERE schemaname = $1 ORDER BY tablename";
const COLUMNS: &str = "SELECT column_name::text FROM information_schema.columns
    WHERE table_schema = $1 AND table_name = $2 ORDER BY ordinal_position";

/// A database, and beside it a schema with a copy of its tables.
pub struct PostgresDisk {
    store: Store,
    beside: Rc<RefCell<Client>>,
    has_copy: bool,
    /// What began last.
    epoch: Option<u16>,
}

impl PostgresDisk {
    pub fn new() -> Self {
        let store = Store::of(Engine::Postgres);
        let mut beside = Client::connect(&store.url(), NoTls).unwrap();
        beside.batch_execute("DROP SCHEMA IF EXISTS copy CASCADE").unwrap();
        Self { store, beside: Rc::new(RefCell::new(beside)), has_copy: false, epoch: None }
    }
}

fn names(
    client: &mut impl postgres::GenericClient,
    sql: &str,
    of: &[&(dyn postgres::types::ToSql + Sync)],
) -> Vec<String> {
    client.query(sql, of).unwrap().iter().map(|row| row.get(0)).collect()
}

impl Disk for PostgresDisk {
    fn open(&mut self, schema: &Arc<Schema>, now: Timestamp) -> Arc<dyn Storage> {
        self.store.serve(schema, WAIT, now, Arc::default()).unwrap()
    }

    /// What is committed stays, and nothing else is anywhere.
    fn crash(&mut self) {}

    fn back_up(&mut self) {
        let mut beside = self.beside.borrow_mut();
        let mut copy = beside
            .build_transaction()
            .isolation_level(postgres::IsolationLevel::RepeatableRead)
            .start()
            .unwrap();
        copy.batch_execute("DROP SCHEMA IF EXISTS copy CASCADE; CREATE SCHEMA copy").unwrap();
        for table in names(&mut copy, TABLES, &[&"public"]) {
            copy.batch_execute(&format!("CREATE TABLE copy.\"{table}\" AS TABLE public.\"{table}\""))
                .unwrap();
        }
        copy.commit().unwrap();
        self.has_copy = true;
    }

    fn restore(&mut self, now: Timestamp) -> bool {
        if !self.bring_back() {
            return false;
        }
        let address = self.store.address();
        let begun = Connections::begin_epoch(&address, &terms(WAIT), self.epoch, now, &mut |_| {}).unwrap();
        self.epoch = Some(begun.0);
        true
    }

    /// As a recovery to an earlier time: the database is on another timeline then. That it may be put back twice on one
    /// day, to a time before the first, is for whoever does it to say (`--above`): it knows the last epoch here.
    fn swap(&mut self) -> bool {
        if !self.bring_back() {
            return false;
        }
        let last = self.epoch.map_or(0, i64::from);
        self.beside
            .borrow_mut()
            .execute(
                "UPDATE public.rollcall_meta SET value = CASE name WHEN 'epoch' THEN greatest(value, $1) ELSE value - 1 END
                 WHERE name IN ('epoch', 'past_timeline')",
                &[&last],
            )
            .unwrap();
        true
    }

    fn hands(&self) -> Box<dyn Fn(i64)> {
        let beside = Rc::clone(&self.beside);
        Box::new(move |ms| {
            beside.borrow_mut().execute("UPDATE clock.hands SET ms = $1", &[&ms]).unwrap();
        })
    }
}

impl PostgresDisk {
    /// Brings the copied tables back; says whether there was a copy.
    fn bring_back(&mut self) -> bool {
        if !self.has_copy {
            return false;
        }
        let epoch = "SELECT value FROM public.rollcall_meta WHERE name = 'epoch'";
        let epoch: i64 = self.beside.borrow_mut().query_one(epoch, &[]).unwrap().get(0);
        self.epoch = self.epoch.max(u16::try_from(epoch).ok());
        let mut beside = self.beside.borrow_mut();
        let mut back = beside.transaction().unwrap();
        // Rows go in by table, and not parents first.
        back.batch_execute("SET LOCAL session_replication_role = replica").unwrap();
        let copied = names(&mut back, TABLES, &[&"copy"]);
        for table in names(&mut back, TABLES, &[&"public"]) {
            if !copied.contains(&table) {
                back.batch_execute(&format!("DROP TABLE public.\"{table}\" CASCADE")).unwrap();
            }
        }
        for table in copied {
            let columns = names(&mut back, COLUMNS, &[&"copy", &table]);
            for column in names(&mut back, COLUMNS, &[&"public", &table]) {
                if !columns.contains(&column) {
                    let drop = format!("ALTER TABLE public.\"{table}\" DROP COLUMN \"{column}\"");
                    back.batch_execute(&drop).unwrap();
                }
            }
            let columns = columns.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
            back.batch_execute(&format!(
                "DELETE FROM public.\"{table}\";
                INSERT INTO public.\"{table}\" ({columns}) SELECT {columns} FROM copy.\"{table}\""
            ))
            .unwrap();
        }
        back.commit().unwrap();
        true
    }
}
