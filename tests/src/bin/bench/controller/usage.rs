//! CPU time and requests of the controller so far.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use wfe_tests::system::System;

use crate::process::{anonymous_memory, mebibytes, memory, processor_time};

/// What the controller has used.
pub struct Usage {
    processor: Duration,
    /// Requests by verb and resource.
    requests: BTreeMap<String, f64>,
}

impl Usage {
    /// Until now.
    pub async fn of(system: &System, pid: u32) -> Result<Self> {
        let metrics = system.controller_metrics().await?;
        let mut requests = BTreeMap::new();
        for line in metrics.lines() {
            let counted = line.strip_prefix("workflowexecution_kube_requests_total{");
            let Some((labels, value)) = counted.and_then(|it| it.split_once("} ")) else {
                continue;
            };
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                rest.split('"').next()
            };
            let kind = format!(
                "{} {}",
                label("verb").unwrap_or_default(),
                label("resource").unwrap_or_default()
            );
            *requests.entry(kind).or_insert(0.0) += value.trim().parse::<f64>()?;
        }
        Ok(Self {
            processor: processor_time(pid)?,
            requests,
        })
    }

    /// Since an earlier moment.
    pub fn since(mut self, before: &Self) -> Self {
        self.processor = self.processor.saturating_sub(before.processor);
        for (kind, value) in &before.requests {
            if let Some(now) = self.requests.get_mut(kind) {
                *now -= value;
            }
        }
        self
    }

    /// CPU time of one of `number`, in milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "rounded for display")]
    pub fn cpu_per(&self, number: usize) -> f64 {
        self.processor.as_secs_f64() * 1e3 / number as f64
    }

    /// Requests of one of `number`, without watches, which time causes.
    #[expect(clippy::cast_precision_loss, reason = "rounded for display")]
    pub fn requests_per(&self, number: usize) -> f64 {
        let caused = self
            .requests
            .iter()
            .filter(|(kind, _)| !kind.starts_with("watch "));
        caused.map(|(_, value)| value).sum::<f64>() / number as f64
    }

    /// Requests of one of `number` by kind.
    #[expect(clippy::cast_precision_loss, reason = "rounded for display")]
    pub fn kinds(&self, number: usize) -> String {
        let kinds = self.requests.iter().filter(|(_, value)| **value > 0.0);
        let kinds = kinds.map(|(kind, value)| format!("{kind} {:.2}", value / number as f64));
        kinds.collect::<Vec<_>>().join(", ")
    }
}

/// Resident memory, with and without the pages of the program's file.
pub fn describe_memory(pid: u32) -> Result<String> {
    let all = mebibytes(memory(pid)?);
    let own = mebibytes(anonymous_memory(pid)?);
    Ok(format!("{all:.1} MiB ({own:.1} without its file)"))
}
