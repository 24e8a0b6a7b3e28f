//! i: small syncs of one owner, alone and beside a neighbour who fills the write queue.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::task::JoinSet;

use super::line;
use super::writes::{SMALL_ROWS, small_talk, write_rows};
use crate::Result;
use crate::child::Listening;
use crate::dataset::{Keys, Person, Row, TABLE};
use crate::driver::{self, Connection, talk_at_once};
use crate::lab::{Lab, Meter};
use crate::report::{Line, Sample, median, quantile};
use crate::seed;

/// The owner whose syncs are measured, alone and then beside the neighbour, and the neighbour.
const ALONE: Person = Person(20_000);
const BESIDE: Person = Person(20_001);
const NEIGHBOUR: Person = Person(20_002);

/// Connections of the neighbour, and rows in each of its requests: as many as one may have.
const CONNECTIONS: u64 = 8;
const LARGE_ROWS: u64 = 5_000;

/// i: the yardstick is the same owner on a quiet server, so the ratio is what the neighbour leaves of its speed.
pub async fn beside_a_neighbour(lab: &mut Lab) -> Result<Vec<Line>> {
    let variant = "small syncs beside 8 times 5,000 edits";
    let mut samples = Vec::new();
    for _ in 0..lab.runs() {
        lab.progress.begin(&format!("i {variant}"));
        samples.push(measure(lab).await?);
        lab.progress.step();
    }
    Ok(vec![line('i', variant, "syncs", "the same syncs on a quiet server", &samples)])
}

async fn measure(lab: &Lab) -> Result<Sample> {
    let rounds = lab.times(400, 6);
    let database = lab.fresh("fairness");
    seed::empty(&database, &[ALONE, BESIDE, NEIGHBOUR])?;
    let server = lab.server(&database).await?;

    let (quiet, took) = talk_at_once(server.address, 200, vec![small_talk(ALONE, rounds)]).await?;
    let quiet_s = took.as_secs_f64();
    let quiet: Vec<f64> = quiet.latencies.iter().map(std::time::Duration::as_secs_f64).collect();

    let neighbour = Neighbour::begin(server.address);
    neighbour.has_written(CONNECTIONS).await;
    let (held, uploads) = (held_s(&server).await?, neighbour.uploads());
    let meter = Meter::begin(&server);
    let (talk, took) = talk_at_once(server.address, 200, vec![small_talk(BESIDE, rounds)]).await?;
    let mut sample = meter.end(&server);
    let (held, uploads) = (held_s(&server).await? - held, neighbour.uploads() - uploads);
    neighbour.end().await;
    super::writes::holds(&server, BESIDE, rounds * SMALL_ROWS).await?;
    server.end().await?;
    lab.discard(&database);

    sample.seconds = took.as_secs_f64();
    sample.heard(&talk);
    sample.rows = rounds * SMALL_ROWS;
    sample.speed = rounds as f64 / sample.seconds;
    sample.yardstick = rounds as f64 / quiet_s;
    sample.extra.insert("quiet_p50_ms", median(&quiet) * 1e3);
    sample.extra.insert("quiet_p99_ms", quantile(&quiet, 0.99) * 1e3);
    sample.extra.insert("neighbour_uploads", uploads as f64);
    sample.extra.insert("neighbour_turn_ms", held * 1e3 / uploads.max(1) as f64);
    Ok(sample)
}

/// An owner whose device edits all its rows without a pause.
struct Neighbour {
    connections: JoinSet<Result<()>>,
    stop: Arc<AtomicBool>,
    uploads: Arc<AtomicU64>,
}

impl Neighbour {
    fn begin(address: SocketAddr) -> Self {
        let (stop, uploads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut connections = JoinSet::new();
        for place in 0..CONNECTIONS {
            connections.spawn(upload(address, place, Arc::clone(&stop), Arc::clone(&uploads)));
        }
        Self { connections, stop, uploads }
    }

    /// Uploads that were taken so far.
    fn uploads(&self) -> u64 {
        self.uploads.load(Ordering::Relaxed)
    }

    async fn has_written(&self, uploads: u64) {
        while self.uploads() < uploads {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // What a connection was refused is no matter here.
        while self.connections.join_next().await.is_some() {}
    }
}

async fn upload(
    address: SocketAddr,
    place: u64,
    stop: Arc<AtomicBool>,
    uploads: Arc<AtomicU64>,
) -> Result<()> {
    let mut connection = Connection::open(address).await?;
    let numbers = place * LARGE_ROWS..(place + 1) * LARGE_ROWS;
    let mut body = b"{\"add\":".to_vec();
    write_rows(&mut body, NEIGHBOUR, Keys::V7, numbers.clone());
    body.push(b'}');
    let token = NEIGHBOUR.token(0);
    connection.good(&driver::post("/synchronise", &token, &body), 200, false).await?;
    // Ready beforehand, since who makes them shares a thread with who is measured; each changes what the other did.
    let edits = [1, 2].map(|position| driver::post("/synchronise", &token, &edit(numbers.clone(), position)));
    for request in edits.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // A server that is fair may refuse some of them: 429 or 503.
        let is_taken = connection.call(request, false).await?.status == 200;
        uploads.fetch_add(u64::from(is_taken), Ordering::Relaxed);
    }
    Ok(())
}

/// Moves the rows of these numbers.
fn edit(numbers: std::ops::Range<u64>, position: u64) -> Vec<u8> {
    let rows = numbers.map(|number| {
        let key = Row::new(NEIGHBOUR, Keys::V7, number, 0).key.0;
        format!("{{\"id\":\"{key}\",\"position\":{position}}}")
    });
    format!("{{\"update\":{{\"{TABLE}\":[{}]}}}}", rows.collect::<Vec<_>>().join(",")).into_bytes()
}

/// For how long the writer was held so far, s.
async fn held_s(server: &Listening) -> Result<f64> {
    const NAME: &str = "rollcall_write_turn_seconds_sum ";
    let mut connection = Connection::open(server.address).await?;
    let result = connection.call(&driver::get("/metrics", "", &[]), true).await?;
    let text = String::from_utf8_lossy(&result.body);
    Ok(text.lines().find_map(|line| line.strip_prefix(NAME)?.trim().parse().ok()).unwrap_or(0.0))
}
