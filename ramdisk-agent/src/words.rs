//! What is said to people: sizes and rates, what a job came to, notes.

use std::io::Write;

use agent_api::{CaptureSummary, RestoreSummary, SourceUse, Summary};

/// A summary for people: what, how much, how fast.
#[must_use]
pub fn describe(summary: &Summary) -> String {
    match summary {
        Summary::Capture(s) => describe_capture(s),
        Summary::Restore(s) => describe_restore(s),
        Summary::Plan(s) => s.text.clone(),
    }
}

fn describe_capture(s: &CaptureSummary) -> String {
    let mut text = format!(
        "captured   {} of disk, {} of data, in {}\nstored     {}{}\nre-read    {} in {}, all hashes \
         right\ntotal      {}\nroot       {}",
        size(s.disk_bytes),
        size(s.data_bytes),
        rate(s.data_bytes, s.capture_ms),
        size(s.stored_bytes),
        share_of_data(s.stored_bytes, s.data_bytes),
        size(s.reread_bytes),
        seconds(s.verify_ms),
        seconds(s.total_ms),
        s.root,
    );
    if s.resumed_bytes > 0 {
        text.push_str(&format!("\nresumed    at {} of disk", size(s.resumed_bytes)));
    }
    text.push_str(&limit(s.limited_by.as_deref()));
    for raw in &s.raw {
        text.push_str("\ntaken raw  ");
        text.push_str(raw);
    }
    for lacking in &s.damaged {
        text.push_str("\nDAMAGED    ");
        text.push_str(lacking);
    }
    text
}

fn describe_restore(s: &RestoreSummary) -> String {
    let compared = if s.compared_bytes > 0 {
        format!("compared   {}\n", rate(s.compared_bytes, s.compare_ms))
    } else {
        String::new()
    };
    if s.compared_bytes > 0 && s.written_bytes == 0 {
        return format!(
            "{compared}identical: nothing was written\ntotal      {}\nroot       {}{}",
            seconds(s.total_ms),
            s.root,
            limit(s.limited_by.as_deref()),
        );
    }
    let mut text = format!(
        "{compared}fetched    {} in {}\nwritten    {}, flushed in {}\nread back  {} in {}, all hashes right\ntotal      {}\nroot       {}{}",
        size(s.fetched_bytes),
        rate(s.written_bytes, s.restore_ms),
        size(s.written_bytes),
        seconds(s.flush_ms),
        size(s.readback_bytes),
        rate(s.readback_bytes, s.verify_ms),
        seconds(s.total_ms),
        s.root,
        limit(s.limited_by.as_deref()),
    );
    text.push_str(&describe_sources(&s.sources));
    for change in &s.changes {
        text.push_str("\nchanged    ");
        text.push_str(change);
    }
    for file in &s.files {
        text.push_str(&format!("\n{:10} {}", file.action.as_str(), file.path));
    }
    text
}

/// How much came from which source: a line each.
#[must_use]
pub fn describe_sources(sources: &[SourceUse]) -> String {
    let line = |source: &SourceUse| {
        let why = source.left_out.as_ref().map(|why| format!(", then left out: {why}"));
        format!("\nfrom       {}: {}{}", source.url, size(source.bytes), why.unwrap_or_default())
    };
    sources.iter().map(line).collect()
}

/// Bytes for people, in powers of 1024.
#[must_use]
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

fn limit(limited_by: Option<&str>) -> String {
    limited_by.map(|what| format!("\nlimited by {what}")).unwrap_or_default()
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

fn rate(bytes: u64, ms: u64) -> String {
    format!("{} ({}/s)", seconds(ms), size(bytes.saturating_mul(1000) / ms.max(1)))
}

/// Nothing where there are none: an empty disk has an image, too.
fn share_of_data(stored: u64, data: u64) -> String {
    if data == 0 {
        return String::new();
    }
    #[allow(clippy::cast_precision_loss, reason = "one decimal of a percentage")]
    let share = stored as f64 / data as f64;
    format!(" ({:.1} % of the data)", share * 100.0)
}

/// Says something on standard error that the summary says as well.
pub fn note(what: &str) {
    let text: String = what.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    // With standard error gone the summary still says it.
    let _ = writeln!(std::io::stderr(), "imprint-agent: note: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_has_of_the_data() {
        assert_eq!(share_of_data(1, 2), " (50.0 % of the data)");
        assert_eq!(share_of_data(13_976, 0), "");
    }
}
