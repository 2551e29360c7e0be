//! "Did you mean": the nearest of a few names.

/// The name that is at most a third of its letters away from `name`, nearest first; else one that begins with it.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let known: Vec<&str> = known.collect();
    let near = known.iter().map(|k| (distance(name, k), *k)).filter(|(d, k)| *d * 3 <= k.len().max(3)).min();
    let begins = || known.iter().find(|k| name.len() > 2 && k.starts_with(name)).copied();
    near.map(|(_, k)| k).or_else(begins)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["cache-dir", "cache-size", "state-dir"];
        assert_eq!(nearest("cachedir", known.into_iter()), Some("cache-dir"));
        assert_eq!(nearest("cache-szie", known.into_iter()), Some("cache-size"));
        assert_eq!(nearest("endpoint", known.into_iter()), None);
        assert_eq!((nearest("state", known.into_iter()), nearest("", known.into_iter())), (Some("state-dir"), None));
        assert_eq!((distance("", "abc"), distance("kitten", "sitting")), (3, 3));
    }
}
