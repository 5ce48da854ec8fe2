//! The comments of the shipped settings file, as text about its keys.
//!
//! The file is blocks with blank lines between them. The first is a comment about all; each other one is a key of the top level,
//! with what is in it, and a comment above. A key inside is told about by the comment on its line and by the one above it.
//! `[live]` and `[restart]` are left out: the schema knows. Made for this one file; what it does not understand, tests miss.

pub(super) struct Comments {
    pub(super) intro: String,
    pub(super) blocks: Vec<Block>,
}

/// A key of the top level.
pub(super) struct Block {
    pub(super) name: String,
    /// The comment above, lines kept.
    pub(super) about: String,
    /// The keys in it, and the sections in it that have a comment.
    pub(super) told: Vec<Told>,
}

pub(super) struct Told {
    /// The whole path.
    pub(super) key: String,
    pub(super) about: String,
}

pub(super) fn read(text: &str) -> Comments {
    let mut parts = text.trim_end().split("\n\n");
    let intro = parts.next().unwrap_or_default().lines().map(uncommented).collect::<Vec<_>>().join("\n");
    Comments { intro, blocks: parts.map(block).collect() }
}

/// One block.
fn block(text: &str) -> Block {
    let mut block = Block { name: String::new(), about: String::new(), told: Vec::new() };
    let (mut path, mut above): (Vec<&str>, String) = (Vec::new(), String::new());
    for line in text.lines() {
        if line.trim_start().starts_with('#') {
            let to = if path.is_empty() { &mut block.about } else { &mut above };
            add(to, uncommented(line.trim_start()), "\n");
            continue;
        }
        let Some((name, rest)) = line.split_once(':') else { continue };
        let (value, beside) = rest.split_once(" #").unwrap_or((rest, ""));
        path.truncate((line.len() - line.trim_start().len()) / 2);
        path.push(name.trim());
        let mut about = String::new();
        add(&mut about, &unmarked(beside.trim()), "");
        add(&mut about, &std::mem::take(&mut above), ". ");
        let is_section = value.trim().is_empty();
        match path.as_slice() {
            [name] => (*name).clone_into(&mut block.name),
            _ if is_section && about.is_empty() => {}
            path => block.told.push(Told { key: path.join("."), about }),
        }
    }
    block.about = unmarked(&block.about);
    block
}

fn add(to: &mut String, text: &str, between: &str) {
    if !to.is_empty() && !text.is_empty() {
        to.push_str(between);
    }
    to.push_str(text);
}

fn uncommented(line: &str) -> &str {
    let text = line.strip_prefix('#').unwrap_or(line);
    text.strip_prefix(' ').unwrap_or(text)
}

fn unmarked(text: &str) -> String {
    text.replace("[live]", "").replace("[restart]", "").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_find_their_keys() {
        let text = "# All of it.\n#\n#   an example\n\n# One. [live]\none: 1      # 1 or 2\n\n# Two,\n# long. [restart]\ntwo:\n  \
                    inner:    # of both\n    # Above.\n    first: \"a:b\"  # beside [live]\n    second: []\n  bare:\n    third: 3  # third\n";
        let Comments { intro, blocks } = read(text);
        assert_eq!(intro, "All of it.\n\n  an example");
        let seen: Vec<_> = blocks.iter().map(|block| (&*block.name, &*block.about)).collect();
        assert_eq!(seen, [("one", "One."), ("two", "Two,\nlong.")]);
        let told: Vec<_> = blocks[1].told.iter().map(|told| (&*told.key, &*told.about)).collect();
        assert_eq!(
            told,
            [
                ("two.inner", "of both"),
                ("two.inner.first", "beside. Above."),
                ("two.inner.second", ""),
                ("two.bare.third", "third")
            ]
        );
        assert!(blocks[0].told.is_empty());
    }
}
