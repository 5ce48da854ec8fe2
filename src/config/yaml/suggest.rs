//! "Did you mean": the known word nearest to an unknown one. Pure.

/// Longer words are not compared: nobody mistypes that much, and the time grows with the product of the lengths.
const LONGEST: usize = 64;

/// The word of `known` that `found` is most likely a misspelling of, if any is near enough. Case does not count.
pub fn did_you_mean<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let found = fold(found);
    if found.is_empty() || found.len() > LONGEST {
        return None;
    }
    let allowed = (found.len() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|word| (distance(&found, &fold(word)), word))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// `connect_timeout`, `connect-timeout` and `connectTimeout` are the same word to a person.
fn fold(word: &str) -> Vec<char> {
    word.chars().filter(|c| *c != '_' && *c != '-').flat_map(char::to_lowercase).collect()
}

/// Levenshtein's, with a swap of neighbours as one step.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &ca) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, &cb) in b.iter().enumerate() {
            let mut cost = (last[j] + usize::from(ca != cb)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && ca == b[j - 1] && a[i - 1] == cb {
                cost = cost.min(before_last[j - 1] + 1);
            }
            row.push(cost);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let known = ["timeout", "deadline", "attempts", "backoff", "userTimeout"];
        for (found, meant) in [
            ("timout", Some("timeout")),
            ("tiemout", Some("timeout")),
            ("Timeout", Some("timeout")),
            ("user_timeout", Some("userTimeout")),
            ("deadlines", Some("deadline")),
            ("banana", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(did_you_mean(found, known), meant, "{found}");
        }
        assert_eq!(did_you_mean(&"t".repeat(1_000_000), known), None);
    }

    #[test]
    fn distance_counts_steps() {
        for (a, b, steps) in [("", "", 0), ("a", "", 1), ("", "ab", 2), ("ab", "ba", 1), ("kitten", "sitting", 3)] {
            assert_eq!(distance(&fold(a), &fold(b)), steps, "{a} {b}");
        }
    }
}
