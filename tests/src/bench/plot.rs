//! The plot: each race as horizontal bars, in seconds.

use std::fmt::Write as _;

const LABEL_WIDTH: f64 = 330.0;
const BAR_WIDTH: f64 = 420.0;
const WIDTH: f64 = LABEL_WIDTH + BAR_WIDTH + 90.0;
const ROW: f64 = 18.0;

/// A race, as the document has it.
#[derive(Debug)]
pub struct Race<'a> {
    /// What was done.
    pub title: &'a str,
    /// Who took part and their medians in seconds; ours first.
    pub rows: Vec<(String, f64)>,
}

/// An SVG of all races.
pub fn svg(races: &[Race<'_>]) -> String {
    let mut body = String::new();
    let mut y = 10.0;
    for Race { title, rows } in races {
        y += 2.0 * ROW;
        text(&mut body, 10.0, y, "start", "bold", title);
        let longest = rows.iter().map(|(_, seconds)| *seconds).fold(f64::MIN_POSITIVE, f64::max);
        for (n, (name, seconds)) in rows.iter().enumerate() {
            y += ROW;
            let width = seconds / longest * BAR_WIDTH;
            let fill = if n == 0 { "#c2410c" } else { "#94a3b8" };
            text(&mut body, LABEL_WIDTH - 8.0, y, "end", "normal", name);
            // Writing to a string does not fail.
            let _ = writeln!(
                body,
                r#"<rect x="{LABEL_WIDTH:.1}" y="{:.1}" width="{width:.1}" height="12" fill="{fill}"/>"#,
                y - 10.5
            );
            text(
                &mut body,
                LABEL_WIDTH + width + 6.0,
                y,
                "start",
                "normal",
                &format!("{seconds:.2} s"),
            );
        }
    }
    let height = y + ROW;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH:.0}" height="{height:.0}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
{body}</svg>
"##
    )
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, weight: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // Writing to a string does not fail.
    let _ = writeln!(
        body,
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-weight="{weight}">{words}</text>"#
    );
}
