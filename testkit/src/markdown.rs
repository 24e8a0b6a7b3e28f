//! Markdown files: their blocks of code, their links and their headings.

use std::path::{Path, PathBuf};

/// Every Markdown file below a folder. Folders that others fill are passed over.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !["target", "node_modules", ".git"].contains(&name.as_str()) {
            found.extend(files(&path));
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
    found.sort();
    found
}

pub struct Page {
    pub path: PathBuf,
    lines: Vec<String>,
}

/// The comment before a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    None,
    Background,
    Answer,
    NotRun(String),
}

/// A fenced block of code.
#[derive(Debug)]
pub struct Block {
    pub line: usize,
    pub language: String,
    /// The file that it shows, as its fence names it.
    pub file: Option<String>,
    pub mark: Mark,
    pub text: String,
}

impl Block {
    pub fn is_shell(&self) -> bool {
        ["sh", "bash", "zsh", "shell", "console"].contains(&self.language.as_str())
    }

    pub fn is_run(&self) -> bool {
        self.is_shell() && !matches!(self.mark, Mark::NotRun(_))
    }
}

impl Page {
    pub fn read(path: &Path) -> Self {
        let text =
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path: path.to_owned(), lines: text.lines().map(str::to_owned).collect() }
    }

    pub fn name(&self, root: &Path) -> String {
        self.path.strip_prefix(root).unwrap().display().to_string()
    }

    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut open: Option<(usize, Block)> = None;
        for (at, line) in self.lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            match (open.take(), line.trim().strip_prefix("```")) {
                (Some((_, block)), Some(_)) => blocks.push(block),
                (Some((indent, mut block)), None) => {
                    block.text += line.get(indent..).unwrap_or_default();
                    block.text.push('\n');
                    open = Some((indent, block));
                }
                (None, Some(info)) => {
                    let mut words = info.split_whitespace().map(str::to_owned);
                    let (language, file) = (words.next().unwrap_or_default(), words.next());
                    let mark = at.checked_sub(1).map_or(Mark::None, |before| mark(&self.lines[before]));
                    open = Some((indent, Block { line: at + 1, language, file, mark, text: String::new() }));
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block does not end", self.path.display());
        blocks
    }

    /// The lines outside of blocks.
    fn prose(&self) -> Vec<&str> {
        let mut is_code = false;
        let mut prose = Vec::new();
        for line in &self.lines {
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
            } else if !is_code {
                prose.push(line.as_str());
            }
        }
        prose
    }

    /// The text between backticks outside of blocks.
    pub fn inline_code(&self) -> Vec<String> {
        let text = self.prose().join("\n");
        text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    /// The targets of all links and pictures.
    pub fn links(&self) -> impl Iterator<Item = String> {
        let text = self.prose().join("\n");
        let targets: Vec<String> = text
            .match_indices("](")
            .filter_map(|(at, begin)| {
                text[at + begin.len()..].split_once(')').map(|(target, _)| target.to_owned())
            })
            .filter(|target| !target.contains(char::is_whitespace))
            .collect();
        targets.into_iter()
    }

    /// The names by which links lead to the headings.
    pub fn anchors(&self) -> Vec<String> {
        let mut anchors: Vec<String> = Vec::new();
        for heading in self.prose().iter().filter(|line| line.starts_with('#')) {
            let name = anchor(heading.trim_start_matches('#').trim());
            let seen = anchors.iter().filter(|other| **other == name).count();
            anchors.push(if seen == 0 { name } else { format!("{name}-{seen}") });
        }
        anchors
    }
}

/// A heading as its link names it: small letters, hyphens for spaces, no punctuation.
fn anchor(heading: &str) -> String {
    let mut name = String::new();
    for c in heading.to_lowercase().chars() {
        match c {
            ' ' => name.push('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => name.push(c),
            _ => {}
        }
    }
    name
}

fn mark(line: &str) -> Mark {
    let comment = line.trim().strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->"));
    match comment {
        Some("background") => Mark::Background,
        Some("answer") => Mark::Answer,
        Some(comment) => match comment.strip_prefix("not run:") {
            Some(reason) => Mark::NotRun(reason.trim().to_owned()),
            None => Mark::None,
        },
        None => Mark::None,
    }
}
