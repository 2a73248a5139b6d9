//! The timeline of one remediation as an SVG: a lane for each who does something, a bar for each hop.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::timeline::Hop;

const WIDTH: f64 = 1000.0;
const LABEL: f64 = 150.0;
const TOP: f64 = 70.0;
const ROW: f64 = 30.0;
/// Text of a bar that ends beyond this is to its left.
const RIGHT: f64 = 640.0;

/// Draws the hops of a remediation that began at `began`, and what was told at its end.
pub fn draw(title: &str, began: Timestamp, hops: &[(Hop, Timestamp)], told: &str) -> String {
    let seconds = |at: Timestamp| at.duration_since(began).as_secs_f64();
    let end = hops.last().map_or(1.0, |(_, at)| seconds(*at).max(0.1));
    let x = |second: f64| LABEL + second / end * (WIDTH - LABEL - 20.0);
    let height = TOP + ROW * rows(hops.len()) + 70.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"24\" font-size=\"16\">{}</text>\n",
        escaped(title)
    );
    let mut line = |text: String| {
        let _ = writeln!(svg, "{text}");
    };
    for second in 0..=whole(end) {
        let at = x(f64::from(second));
        line(format!(
            "<line x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>",
            TOP - 14.0,
            height - 66.0
        ));
        line(format!(
            "<text x=\"{at:.1}\" y=\"{:.1}\" fill=\"#666\" text-anchor=\"middle\">{second} s</text>",
            TOP - 20.0
        ));
    }
    let mut before = 0.0;
    for (index, (hop, at)) in hops.iter().enumerate() {
        let (who, what) = hop.describe();
        let (y, at) = (TOP + ROW * rows(index), seconds(*at));
        let (from, to) = (x(before), x(at).max(x(before) + 2.0));
        let colour = if hop.is_own() { "#2a78c2" } else { "#9aa5b1" };
        line(format!(
            "<text x=\"10\" y=\"{:.1}\">{}</text>",
            y + 14.0,
            escaped(who)
        ));
        line(format!(
            "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"18\" rx=\"3\" fill=\"{colour}\"/>",
            to - from
        ));
        let (at_x, anchor) = if to > RIGHT {
            (from - 6.0, "end")
        } else {
            (to + 6.0, "start")
        };
        line(format!(
            "<text x=\"{at_x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{} ({:.2} s)</text>",
            y + 14.0,
            escaped(what),
            at - before
        ));
        before = at;
    }
    let mut note = |row: f64, text: &str| {
        let y = height - 12.0 - 18.0 * row;
        line(format!(
            "<text x=\"10\" y=\"{y:.1}\" fill=\"#666\">{}</text>",
            escaped(text)
        ));
    };
    note(2.0, "blue: wfe; grey: others");
    let (first, second) = halves(told);
    note(1.0, &format!("Notification: {first}"));
    note(0.0, second);
    line("</svg>".to_owned());
    svg
}

/// The text on two lines.
fn halves(text: &str) -> (&str, &str) {
    let middle = text.len() / 2;
    let space = text.get(middle..).and_then(|it| it.find(' '));
    space.map_or((text, ""), |it| text.split_at(middle + it))
}

#[expect(clippy::cast_precision_loss, reason = "a dozen")]
fn rows(count: usize) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "seconds of one remediation"
)]
fn whole(seconds: f64) -> i32 {
    seconds as i32
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
