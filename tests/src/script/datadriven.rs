//! Script files in the manner of etcd-io/raft's "datadriven" tests: blocks of commands, a line of
//! four dashes, and the output that they must give, up to an empty line.
//!
//! ```text
//! # a comment
//! propose 1 a
//! settle
//! ----
//! n1 proposes s2 [a]
//! ```

/// One block of a script file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The line of its first command, from 1.
    pub line: usize,
    /// Its text up to the dashes, as it stands in the file.
    pub head: Vec<String>,
    /// The commands: the head without comments and empty lines.
    pub commands: Vec<String>,
    /// The expected output.
    pub expected: Vec<String>,
}

/// Cuts a file into blocks; text after the last block (comments) comes second.
#[must_use]
pub fn parse(text: &str) -> (Vec<Block>, Vec<String>) {
    let mut blocks = Vec::new();
    let mut head: Vec<String> = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        if line != "----" {
            head.push(line.to_owned());
            continue;
        }
        let mut expected = Vec::new();
        while let Some((_, line)) = lines.next_if(|(_, line)| !line.is_empty()) {
            expected.push(line.to_owned());
        }
        lines.next_if(|(_, line)| line.is_empty());
        let is_command = |line: &&String| !line.is_empty() && !line.starts_with('#');
        let commands = head.iter().filter(is_command).cloned().collect();
        blocks.push(Block {
            line: number + 1 - head.len(),
            head: std::mem::take(&mut head),
            commands,
            expected,
        });
    }
    (blocks, head)
}

/// Puts a file together again.
#[must_use]
pub fn render(blocks: &[Block], tail: &[String]) -> String {
    let mut text = String::new();
    for (index, block) in blocks.iter().enumerate() {
        for line in &block.head {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str("----\n");
        for line in &block.expected {
            text.push_str(line);
            text.push('\n');
        }
        if index + 1 < blocks.len() || !tail.is_empty() {
            text.push('\n');
        }
    }
    for line in tail {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// What changed from `expected` to `found`, line by line: `-` for what is missing, `+` for what
/// came instead, and two lines around each change.
#[must_use]
pub fn difference(expected: &[String], found: &[String]) -> String {
    let rows = longest_common(expected, found);
    let (mut left, mut right) = (0, 0);
    let mut lines: Vec<(char, &str)> = Vec::new();
    while left < expected.len() || right < found.len() {
        if left < expected.len() && right < found.len() && expected[left] == found[right] {
            lines.push((' ', &expected[left]));
            (left, right) = (left + 1, right + 1);
        } else if right == found.len()
            || (left < expected.len() && rows[left + 1][right] >= rows[left][right + 1])
        {
            lines.push(('-', &expected[left]));
            left += 1;
        } else {
            lines.push(('+', &found[right]));
            right += 1;
        }
    }
    let near = |index: usize| {
        let from = index.saturating_sub(2);
        lines[from..(index + 3).min(lines.len())].iter().any(|(mark, _)| *mark != ' ')
    };
    let shown = lines.iter().enumerate().filter(|(index, _)| near(*index));
    shown.map(|(_, (mark, line))| format!("{mark} {line}\n")).collect()
}

/// For each pair of suffixes, how many lines they have in common, in order.
fn longest_common(left: &[String], right: &[String]) -> Vec<Vec<u32>> {
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for i in (0..left.len()).rev() {
        for j in (0..right.len()).rev() {
            rows[i][j] = if left[i] == right[j] {
                rows[i + 1][j + 1] + 1
            } else {
                rows[i + 1][j].max(rows[i][j + 1])
            };
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str =
        "# first\ncluster 3\n----\nok\n\npropose 1 a\nsettle\n----\n\nstate\n----\nx\ny\n";

    #[test]
    fn a_file_survives_parsing_and_rendering() {
        let (blocks, tail) = parse(FILE);
        assert_eq!(render(&blocks, &tail), FILE);
        assert_eq!(blocks.len(), 3);
        assert_eq!(blocks[0].commands, ["cluster 3"]);
        assert_eq!((blocks[1].line, blocks[1].expected.len()), (6, 0));
        assert_eq!(blocks[2].expected, ["x", "y"]);
    }

    #[test]
    fn a_difference_names_what_is_missing_and_what_came() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let shown = difference(&lines("a b c d e f g"), &lines("a b c d x f g"));
        assert_eq!(shown, "  c\n  d\n- e\n+ x\n  f\n  g\n");
        assert_eq!(difference(&lines("a b"), &lines("a b")), "");
    }
}
