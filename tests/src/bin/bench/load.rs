//! Keep-alive load over TLS, each answer checked.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::client::TlsStream;
use wfe_tests::system::TlsClient;

use super::body::Request;

const TICK: Duration = Duration::from_millis(1);

/// How requests follow each other.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// The next one when the last is answered: as many as there can be.
    Saturation,
    /// So many a second over all connections, whether or not the last is answered. A request that
    /// is due while its connection waits counts from when it was due.
    PerSecond(u32),
}

/// What came of it.
pub struct Outcome {
    /// In nanoseconds.
    pub latencies: Histogram<u64>,
    /// From the first request to the last answer.
    pub took: Duration,
}

/// Loads `client` for some time.
pub async fn load(
    client: &TlsClient,
    request: &Request,
    connections: usize,
    pace: Pace,
    time: Duration,
) -> Result<Outcome> {
    let open = (0..connections).map(async |_| client.connect().await);
    let streams = try_join_all(open).await?;
    let started = Instant::now();
    let users = streams
        .into_iter()
        .enumerate()
        .map(|(number, stream)| User {
            number,
            stream,
            request: request.clone(),
            buffer: Vec::with_capacity(4 << 10),
        });
    let loads = users.map(|user| user.load(connections, pace, started, time));
    let mut latencies = Histogram::new(3)?;
    for of_one in try_join_all(loads).await? {
        latencies.add(of_one)?;
    }
    let took = started.elapsed();
    Ok(Outcome { latencies, took })
}

struct User {
    number: usize,
    stream: TlsStream<TcpStream>,
    request: Request,
    buffer: Vec<u8>,
}

impl User {
    async fn load(
        mut self,
        connections: usize,
        pace: Pace,
        started: Instant,
        time: Duration,
    ) -> Result<Histogram<u64>> {
        let mut latencies = Histogram::new(3)?;
        let number = u32::try_from(self.number)?;
        let (first, every) = match pace {
            Pace::Saturation => (started, None),
            Pace::PerSecond(rate) => {
                let apart = Duration::from_secs(1) / rate;
                (
                    started + apart * number,
                    Some(apart * u32::try_from(connections)?),
                )
            }
        };
        let mut due = first;
        while due < started + time {
            let begun = if due > Instant::now() {
                sleep_until(due).await;
                // The timer ticks in milliseconds: so much of being late is its own.
                Instant::now().min(due + TICK)
            } else {
                due
            };
            self.ask().await?;
            latencies.record(u64::try_from(begun.elapsed().as_nanos())?)?;
            due = every.map_or_else(Instant::now, |every| due + every);
        }
        Ok(latencies)
    }

    /// One review: it must be allowed, and have the uid that was sent.
    async fn ask(&mut self) -> Result<()> {
        let (bytes, uid) = self.request.next(self.number);
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        self.buffer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.buffer).await?;
            ensure!(read > 0, "the connection was closed");
            if let Some(body) = complete(&self.buffer)? {
                let text = std::str::from_utf8(body)?;
                let right = text.contains(&uid) && text.contains("\"allowed\":true");
                ensure!(right, "{uid} was answered: {text}");
                return Ok(());
            }
        }
    }
}

/// The body of an answer that is there whole.
fn complete(bytes: &[u8]) -> Result<Option<&[u8]>> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes)? else {
        return Ok(None);
    };
    ensure!(
        response.code == Some(200),
        "{}",
        String::from_utf8_lossy(bytes)
    );
    let mut headers = response.headers.iter();
    let length = headers.find(|it| it.name.eq_ignore_ascii_case("content-length"));
    let length: usize = std::str::from_utf8(length.context("a length")?.value)?.parse()?;
    Ok(bytes.get(head..head + length))
}
