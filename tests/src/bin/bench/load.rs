//! Generates load over keep-alive TLS connections, and checks each response.

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

/// When the next request is sent.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// After the response to the last request: maximum throughput.
    Saturation,
    /// At this rate over all connections. The latency of a request that is due while its connection
    /// waits for a response is measured from the due time.
    PerSecond(u32),
}

/// Results of a load.
pub struct Outcome {
    /// Latencies in nanoseconds.
    pub latencies: Histogram<u64>,
    /// Time from the first request to the last response.
    pub took: Duration,
}

/// Sends requests over `connections` for `time`.
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
    let connected = streams
        .into_iter()
        .enumerate()
        .map(|(number, stream)| Connection {
            number,
            stream,
            request: request.clone(),
            buffer: Vec::with_capacity(4 << 10),
        });
    let loads = connected.map(|it| it.load(connections, pace, started, time));
    let mut latencies = Histogram::new(3)?;
    for histogram in try_join_all(loads).await? {
        latencies.add(histogram)?;
    }
    let took = started.elapsed();
    Ok(Outcome { latencies, took })
}

struct Connection {
    number: usize,
    stream: TlsStream<TcpStream>,
    request: Request,
    buffer: Vec<u8>,
}

impl Connection {
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
                // The timer has a resolution of 1 ms: up to this, the delay is not that of the
                // webhook.
                Instant::now().min(due + TICK)
            } else {
                due
            };
            self.review().await?;
            latencies.record(u64::try_from(begun.elapsed().as_nanos())?)?;
            due = every.map_or_else(Instant::now, |every| due + every);
        }
        Ok(latencies)
    }

    /// Sends one review; the response must allow it and have its uid.
    async fn review(&mut self) -> Result<()> {
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
                ensure!(right, "unexpected response to review {uid}: {text}");
                return Ok(());
            }
        }
    }
}

/// The body of a response; none while the response is incomplete.
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
    let length: usize = std::str::from_utf8(length.context("no content-length")?.value)?.parse()?;
    Ok(bytes.get(head..head + length))
}
