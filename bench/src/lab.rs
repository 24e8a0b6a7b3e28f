//! Where one benchmark keeps its files, its sizes and how far it is.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::child::{Listening, Scratch, Usage, usage};
use super::progress::Progress;
use super::report::Sample;
use super::seed::{self, Sizes};
use super::{Bench, Result};

/// All that the scenarios share. Dropping it takes the files away and stops what still loads.
pub struct Lab {
    pub options: Bench,
    pub progress: Progress,
    pub sizes: Sizes,
    scratch: Scratch,
    large: Option<PathBuf>,
    stop: Arc<AtomicBool>,
}

impl Lab {
    pub fn new(options: Bench) -> Result<Self> {
        let within = options.cache.clone().unwrap_or_else(std::env::temp_dir);
        let rows = options.rows.unwrap_or(if options.quick { 40_000 } else { 2_000_000 });
        Ok(Self {
            progress: Progress::new(0),
            sizes: Sizes { rows },
            scratch: Scratch::new(&within)?,
            large: None,
            stop: Arc::default(),
            options,
        })
    }

    /// How often each measurement is made.
    pub fn runs(&self) -> u32 {
        self.options.runs.unwrap_or(if self.options.quick { 1 } else { 3 })
    }

    /// How often something is done within one measurement.
    pub fn times(&self, usually: u64, quick: u64) -> u64 {
        if self.options.quick { quick } else { usually }
    }

    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// A database file that is not there yet.
    pub fn fresh(&self, name: &str) -> PathBuf {
        self.folder().join(format!("{name}-{}.db", uuid::Uuid::now_v7().simple()))
    }

    /// Deletes a database with all that SQLite keeps beside it.
    pub fn discard(&self, database: &Path) {
        for suffix in ["", "-wal", "-shm", ".lock"] {
            let mut name = database.as_os_str().to_owned();
            name.push(suffix);
            let _ = std::fs::remove_file(name);
        }
    }

    fn program(&self) -> Option<&Path> {
        self.options.program.as_deref()
    }

    pub async fn server(&self, database: &Path) -> Result<Listening> {
        Listening::server(self.program(), database, self.folder(), &self.options.log).await
    }

    pub async fn replica(&self, url: &str, place: u64) -> Result<Listening> {
        Listening::replica(self.program(), url, self.folder(), &self.options.log, place).await
    }

    pub async fn fixed(&self) -> Result<Listening> {
        Listening::fixed(self.folder(), &self.options.log).await
    }

    /// The large database: from the cache, or loaded now; checked once.
    pub async fn large(&mut self) -> Result<PathBuf> {
        if let Some(path) = &self.large {
            return Ok(path.clone());
        }
        let (cache, sizes) = (self.options.cache.clone(), self.sizes);
        let (folder, stop) = (self.folder().to_owned(), Arc::clone(&self.stop));
        let loaded = Arc::new(AtomicU64::new(0));
        let result = Arc::clone(&loaded);
        let mut loading = tokio::task::spawn_blocking(move || {
            let result = |rows| result.store(rows, Ordering::Relaxed);
            seed::large(&folder, cache.as_deref(), sizes, &stop, &result)
        });
        let path = loop {
            tokio::select! {
                ended = &mut loading => break ended??,
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    self.progress.begin(&format!("loading {} rows", sizes.rows));
                    self.progress.within(loaded.load(Ordering::Relaxed), sizes.rows);
                }
            }
        };
        let server = self.server(&path).await?;
        seed::check(&server, sizes).await?;
        server.end().await?;
        self.large = Some(path.clone());
        Ok(path)
    }

    /// What it takes here until a few bytes are on the disk, s: the median of many.
    pub fn sync_s(&self) -> Result<f64> {
        let path = self.folder().join("sync");
        let mut file = std::fs::File::create(&path)?;
        let mut seconds = Vec::new();
        for _ in 0..64 {
            file.write_all(&[0; 4_096])?;
            let began = Instant::now();
            file.sync_data()?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        std::fs::remove_file(path)?;
        Ok(super::report::median(&seconds))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// CPU and memory from here to the end of a measurement.
pub struct Meter {
    server: Usage,
    driver: Usage,
    began: Instant,
}

impl Meter {
    pub fn begin(server: &Listening) -> Self {
        server.forget_peak();
        Self { server: server.usage(), driver: usage("self"), began: Instant::now() }
    }

    pub fn end(self, server: &Listening) -> Sample {
        let seconds = self.began.elapsed().as_secs_f64();
        let (now, driver) = (server.usage(), usage("self"));
        Sample {
            seconds,
            server_cpu_s: now.cpu_s - self.server.cpu_s,
            driver_cpu_s: driver.cpu_s - self.driver.cpu_s,
            rss_start: self.server.rss,
            rss_peak: now.rss_peak,
            ..Sample::default()
        }
    }
}
