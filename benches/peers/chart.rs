//! The chart: what each peer's unit of work costs against adit's, as an SVG for the documentation.
//!
//! Comes in: the record of a run. Goes out: SVG text. A panel for the peers without a tunnel and one for the pairs; in it a group of bars for each shape, one for each
//! peer. Ratios, because a run's figures mean little on another machine. Peers with several workers, bursts and direct are left out.
//!
//! The text stands alone: no script, no font, no link; colours for light and dark come from one style sheet, on a background of its own, because a page that is dark
//! need not say so to an image. Invariant: the same record gives the same text.

mod scale;

use std::fmt::Write;

use super::recipe::{family, tunnel, workers};
use super::record::{Median, Record};
use scale::Scale;

/// Geometry, in pixels: the sheet, and where bars begin.
const WIDTH: f64 = 860.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = 60.0;
const BAR: f64 = 9.0;
const PITCH: f64 = 11.0;
const GROUP_GAP: f64 = 12.0;
/// A panel's head (title, legend) and foot (ticks, what the axis is).
const HEAD: f64 = 52.0;
const FOOT: f64 = 52.0;

/// Okabe and Ito's colours, which stay apart for all kinds of sight and on both backgrounds.
const COLOURS: [(&str, &str); 5] =
    [("adit", "#0072b2"), ("haproxy", "#e69f00"), ("nginx", "#009e73"), ("envoy", "#cc79a7"), ("ztunnel", "#d55e00")];
const OTHER_COLOUR: &str = "#8a8a8a";
/// adit, arranged otherwise.
const VARIANT_COLOUR: &str = "#56b4e9";

const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#1f2328}.s{font-size:10px;fill:#59636e}.h{font-size:14px;font-weight:600}\
    .b{fill:#fff}.g{stroke:#d1d9e0}.o{stroke:#1f2328}.v{paint-order:stroke;stroke:#fff;stroke-width:3px}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.b{fill:#0d1117}.g{stroke:#3d444d}.o{stroke:#e6edf3}.v{stroke:#0d1117}}";

/// One table's worth of bars.
struct Panel<'a> {
    title: &'static str,
    /// Whose cost is 1; without it, the lowest of each group.
    reference: Option<&'a str>,
    peers: Vec<&'a str>,
    groups: Vec<Group>,
}

/// One shape.
struct Group {
    name: String,
    /// What 1 is.
    unit: String,
    /// In the order of the panel's peers; none where a peer failed.
    ratios: Vec<Option<f64>>,
}

/// Draws all that the record has.
pub(crate) fn draw(record: &Record) -> String {
    let panels: Vec<Panel<'_>> = [false, true].into_iter().filter_map(|tunnels| Panel::of(record, tunnels)).collect();
    let height = panels.iter().map(Panel::height).sum::<f64>() + 28.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>What a unit of work costs each proxy</title>\n\
         <desc>Bars of CPU time per unit, and of memory per idle connection, against adit; shorter is better.</desc>\n\
         <style>{STYLE}</style>\n<rect class=\"b\" width=\"100%\" height=\"100%\"/>\n"
    );
    let mut top = 0.0;
    for panel in &panels {
        panel.draw(&mut svg, top);
        top += panel.height();
    }
    let machine = &record.machine;
    let noisy = record.medians.iter().any(Median::is_noisy);
    let note = format!(
        "Medians of {} rounds of {} s, proxy on one core. {}, Linux {}.{}",
        record.rounds,
        record.seconds,
        machine.cpu,
        machine.kernel,
        if noisy { " Something else ran on the machine meanwhile." } else { "" }
    );
    text(&mut svg, "s", "start", (12.0, top + 14.0), &note);
    svg + "</svg>\n"
}

impl<'a> Panel<'a> {
    fn of(record: &'a Record, tunnels: bool) -> Option<Self> {
        let names = record.peers.iter().map(|peer| peer.name.as_str());
        let peers: Vec<&str> = names.filter(|name| workers(name) == 1 && tunnel::is_one(name) == tunnels).collect();
        let (title, reference) =
            if tunnels { ("Pairs with a tunnel between them", "adit-tunnel") } else { ("Plain TCP", "adit") };
        let reference = peers.contains(&reference).then_some(reference);
        let groups: Vec<Group> = record
            .shapes
            .iter()
            .filter(|shape| shape.is_among_peers() && shape.is_drawn())
            .filter_map(|shape| {
                let medians: Vec<Option<&Median>> = peers.iter().map(|peer| record.median(peer, *shape)).collect();
                Group::of(shape.name(), &medians, reference)
            })
            .collect();
        (!groups.is_empty()).then_some(Self { title, reference, peers, groups })
    }

    fn height(&self) -> f64 {
        HEAD + self.groups.len() as f64 * self.group_height() + FOOT
    }

    fn group_height(&self) -> f64 {
        self.peers.len() as f64 * PITCH + GROUP_GAP
    }

    fn draw(&self, svg: &mut String, top: f64) {
        text(svg, "h", "start", (12.0, top + 22.0), self.title);
        self.legend(svg, top + 42.0);
        let ratios = self.groups.iter().flat_map(|group| group.ratios.iter().flatten().copied());
        let scale = Scale::over(ratios, LEFT, WIDTH - RIGHT);
        let (first, last) = (top + HEAD, top + self.height() - FOOT);
        self.axis(svg, &scale, first, last);
        for (number, group) in self.groups.iter().enumerate() {
            let top = first + number as f64 * self.group_height() + GROUP_GAP / 2.0;
            let middle = top + self.peers.len() as f64 * PITCH / 2.0;
            text(svg, "", "end", (LEFT - 10.0, middle), &group.name);
            text(svg, "s", "end", (LEFT - 10.0, middle + 12.0), &group.unit);
            for (place, (peer, ratio)) in self.peers.iter().zip(&group.ratios).enumerate() {
                bar(svg, &scale, top + place as f64 * PITCH, colour(peer), *ratio);
            }
        }
    }

    /// A square and a name for each peer, in the order of the bars.
    fn legend(&self, svg: &mut String, baseline: f64) {
        let mut x = 12.0;
        for peer in &self.peers {
            let (y, fill) = (baseline - BAR, colour(peer));
            // Writing to a String cannot fail, here and below.
            let _ = writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"{BAR}\" height=\"{BAR}\" fill=\"{fill}\"/>");
            text(svg, "", "start", (x + 14.0, baseline), peer);
            x += 34.0 + 7.0 * peer.len() as f64;
        }
    }

    /// Lines from top to bottom, their figures, and what they are of.
    fn axis(&self, svg: &mut String, scale: &Scale, first: f64, last: f64) {
        for tick in scale.ticks() {
            let x = scale.place(tick);
            let class = if (tick - 1.0).abs() < f64::EPSILON { "o" } else { "g" };
            let _ = writeln!(svg, "<path class=\"{class}\" d=\"M{x} {first}V{last}\"/>");
            text(svg, "s", "middle", (x, last + 13.0), &format!("{tick}"));
        }
        let one = self.reference.unwrap_or("the best");
        let caption = format!("CPU time per unit (idle: memory per connection), {one} = 1; shorter is better");
        text(svg, "s", "start", (LEFT, last + 28.0), &caption);
    }
}

impl Group {
    /// None where there is nothing to compare with.
    fn of(name: String, medians: &[Option<&Median>], reference: Option<&str>) -> Option<Self> {
        let known = || medians.iter().flatten().filter(|median| median.cost.is_some_and(|cost| cost > 0.0));
        let one = match reference {
            Some(reference) => known().find(|median| median.peer == reference),
            None => known().min_by(|one, other| one.cost.unwrap_or(0.0).total_cmp(&other.cost.unwrap_or(0.0))),
        }?;
        let unit = one.cost?;
        let digits = if unit < 10.0 { 2 } else { usize::from(unit < 100.0) };
        let ratios = medians.iter().map(|median| Some((*median)?.cost?.max(0.0) / unit)).collect();
        Some(Self { name, unit: format!("1 = {unit:.digits$} {}", one.cost_unit), ratios })
    }
}

/// One bar and its figure; one that would leave the sheet is cut, and says so.
fn bar(svg: &mut String, scale: &Scale, y: f64, fill: &str, ratio: Option<f64>) {
    let Some(ratio) = ratio else {
        text(svg, "s", "start", (LEFT + 4.0, y + BAR - 0.5), "failed");
        return;
    };
    let end = scale.place(ratio);
    let width = end - LEFT;
    let _ = writeln!(svg, "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{fill}\"/>");
    let cut = if scale.cuts(ratio) { " (cut)" } else { "" };
    // With a rim of the background's colour, because lines of the axis pass behind it.
    text(svg, "s v", "start", (end + 4.0, y + BAR - 0.5), &format!("{ratio:.2}{cut}"));
}

fn text(svg: &mut String, class: &str, anchor: &str, (x, y): (f64, f64), content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let anchor = if anchor == "start" { String::new() } else { format!(" text-anchor=\"{anchor}\"") };
    let _ = writeln!(svg, "<text{class}{anchor} x=\"{x:.1}\" y=\"{y:.1}\">{content}</text>");
}

/// By program; the captured twin of a peer is another peer, and grey.
fn colour(peer: &str) -> &'static str {
    if peer.ends_with("-tproxy") || peer.contains("-self-") {
        return VARIANT_COLOUR;
    }
    let known = COLOURS.iter().find(|(name, _)| *name == family(peer) && !peer.ends_with("-captured"));
    known.map_or(OTHER_COLOUR, |(_, colour)| colour)
}
