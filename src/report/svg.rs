//! Small drawings: shapes only, stretched to whatever width there is; words stand beside them in HTML, where they stay
//! readable. Whatever is somebody's words is escaped.

use std::fmt::{Display, Write as _};

/// Text as HTML may hold it, in an attribute, too.
pub(super) struct Safe<'a>(pub(super) &'a str);

impl Display for Safe<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A drawing of so many units of width and height.
pub(super) struct Drawing {
    text: String,
}

impl Drawing {
    /// `height`: on the screen, too, in pixels. `about`: what it shows, for those who don't see it.
    pub(super) fn new(width: usize, height: usize, about: &str) -> Drawing {
        let about = Safe(about);
        let text = format!(
            "<svg role=\"img\" aria-label=\"{about}\" viewBox=\"0 0 {width} {height}\" height=\"{height}\" preserveAspectRatio=\"none\">"
        );
        Drawing { text }
    }

    /// A bar with its class, and what is said of it.
    pub(super) fn bar(&mut self, x: f64, y: f64, width: f64, height: f64, class: &str, said: &str) {
        if width <= 0.0 || height <= 0.0 {
            return;
        }
        let _ = write!(
            self.text,
            "<rect class=\"{class}\" x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\">"
        );
        if !said.is_empty() {
            let _ = write!(self.text, "<title>{}</title>", Safe(said));
        }
        self.text.push_str("</rect>");
    }

    /// A line through what is known; it is broken where nothing is.
    pub(super) fn line(&mut self, points: impl Iterator<Item = Option<(f64, f64)>>, class: &str) {
        let mut path = String::new();
        let mut pen_is_down = false;
        for point in points {
            match point {
                Some((x, y)) => {
                    let _ = write!(path, "{}{x:.2} {y:.2}", if pen_is_down { "L" } else { "M" });
                    // A single one is a dot, not nothing.
                    if !pen_is_down {
                        path.push_str("h.5");
                    }
                    pen_is_down = true;
                }
                None => pen_is_down = false,
            }
        }
        if !path.is_empty() {
            let _ = write!(self.text, "<path class=\"{class}\" d=\"{path}\"/>");
        }
    }

    pub(super) fn finish(mut self) -> String {
        self.text.push_str("</svg>");
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words_and_gaps_stay_gaps() {
        assert_eq!(
            Safe("</script><img onerror='x' a=\"&\">").to_string(),
            "&lt;/script&gt;&lt;img onerror=&#39;x&#39; a=&quot;&amp;&quot;&gt;"
        );
        let mut drawing = Drawing::new(10, 5, "a<b");
        drawing.bar(0.0, 0.0, 0.0, 5.0, "done", "nothing");
        drawing.bar(1.0, 2.0, 3.0, 3.0, "failed", "<b>");
        drawing.line([Some((0.0, 1.0)), Some((1.0, 2.0)), None, Some((3.0, 1.0))].into_iter(), "seen");
        let expected = "<svg role=\"img\" aria-label=\"a&lt;b\" viewBox=\"0 0 10 5\" height=\"5\" preserveAspectRatio=\"none\">\
             <rect class=\"failed\" x=\"1.00\" y=\"2.00\" width=\"3.00\" height=\"3.00\"><title>&lt;b&gt;</title></rect>\
             <path class=\"seen\" d=\"M0.00 1.00h.5L1.00 2.00M3.00 1.00h.5\"/></svg>";
        assert_eq!(drawing.finish(), expected);
    }
}
