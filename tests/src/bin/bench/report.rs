//! Formats results as tables.

use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use hdrhistogram::Histogram;

/// A Markdown table.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header);
    table
}

/// p50, p99 and p99.9, in milliseconds.
pub fn quantiles(latencies: &Histogram<u64>) -> Vec<String> {
    [0.5, 0.99, 0.999]
        .map(|quantile| {
            let nanoseconds = Duration::from_nanos(latencies.value_at_quantile(quantile));
            format!("{:.2} ms", nanoseconds.as_secs_f64() * 1_000.0)
        })
        .to_vec()
}
