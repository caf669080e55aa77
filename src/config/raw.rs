//! The file as written: a tree of values that know where they stand, and the tables of keys.
//!
//! The `ron` crate stops at the first value of a wrong type; whoever edits a file wants to hear of all of them. So
//! this reads RON to a tree without types, and `check` judges the tree. Only broken syntax ends the reading. The
//! tests hold the reader and the shipped files against the `ron` crate.

use std::fmt;
use std::sync::Arc;

use super::check::Problem;

/// The deepest nesting read. The deepest meaningful file has three levels; the bound keeps recursion off the stack.
const MAX_DEPTH: u32 = 32;

/// The most characters of a value that a problem repeats.
const MAX_SHOWN: usize = 60;

/// Where a value was written. It prints as `server.ron:3:14` or `--network`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file; line and column count from 1, columns in characters.
    File { path: Arc<str>, line: u32, column: u32 },
    /// In an option of the command line.
    Option(&'static str),
}

/// A value and where it was written. A value may be a join line, so none is shown by `Debug`.
#[derive(Clone)]
pub struct Node {
    pub place: Place,
    pub value: Value,
    /// The value as written if it is a scalar, shortened; empty for those with an inside.
    pub written: String,
}

/// A value as the grammar of RON tells kinds apart.
#[derive(Clone)]
pub enum Value {
    Text(String),
    Letter,
    /// `b"a"` or `b'a'`.
    Bytes,
    Integer(i128),
    Fraction,
    Bool(bool),
    /// A bare name, such as a string without its quotes.
    Word,
    None,
    Some(Box<Node>),
    List(Vec<Node>),
    /// `("a", 1)`.
    Tuple,
    /// `{"a": 1}`.
    Map,
    /// `(a: 1)` or `()`, with or without a name before it.
    Struct(Struct),
}

/// The inside of `Name(key: value, …)`.
#[derive(Debug, Clone, Default)]
pub struct Struct {
    pub name: Option<String>,
    pub fields: Vec<Field>,
}

/// One `key: value`.
#[derive(Debug, Clone)]
pub struct Field {
    pub key: String,
    pub place: Place,
    pub node: Node,
}

/// A struct as written: a fixed set of keys, each perhaps with a value.
pub trait Keyed: Default {
    /// The keys, in the order of the shipped file.
    const KEYS: &'static [&'static str];

    /// Where the value of a key is kept; `None` for an unknown key.
    fn slot(&mut self, key: &str) -> Option<&mut Option<Node>>;
}

/// Defines a struct as written, each key a value not yet judged, together with the list of its keys. For the tests
/// it defines the same keys with their serde types too, so that the `ron` crate can be asked its opinion.
macro_rules! keys {
    ($(#[$meta:meta])* $name:ident, $typed:ident { $($key:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default)]
        pub struct $name {
            $(pub $key: Option<Node>,)*
        }

        impl Keyed for $name {
            const KEYS: &'static [&'static str] = &[$(stringify!($key)),*];

            fn slot(&mut self, key: &str) -> Option<&mut Option<Node>> {
                match key {
                    $(stringify!($key) => Some(&mut self.$key),)*
                    _ => None,
                }
            }
        }

        #[cfg(test)]
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(dead_code, reason = "the test asks only whether the file fits")]
        pub struct $typed {
            $(pub $key: $type,)*
        }
    };
}

keys! {
    /// The keys of a server's file.
    ServerRaw, ServerTyped {
        state: String,
        listen: Vec<String>,
        port: u16,
        network: String,
        network6: String,
        sequential: bool,
        advertise: Vec<String>,
        open: bool,
        members: Vec<MemberTyped>,
        allow_routes: Vec<String>,
        control: String,
        invite_expiry: String,
        scorecard: Option<String>,
        scorecard_format: String,
        stats: bool,
        metrics: Option<String>,
        graphviz: Option<String>,
        log_level: String,
        log: Option<String>,
        log_format: String,
        log_max_size: String,
        log_max_age: String,
        log_keep: u16,
        upnptimeout: u16,
        nat_port: Option<u16>,
    }
}

keys! {
    /// The keys of a client's file.
    ClientRaw, ClientTyped {
        state: String,
        join: Option<String>,
        join_file: Option<String>,
        server: Vec<String>,
        port: u16,
        listen_port: u16,
        name: Option<String>,
        device: String,
        mtu: u16,
        offload: bool,
        mss_clamp: bool,
        lan: bool,
        direct: bool,
        uplinks: Vec<String>,
        multipath: String,
        tcp: bool,
        hosts: Option<String>,
        route: Vec<String>,
        accept_routes: bool,
        exit: Option<String>,
        exit_node: bool,
        masquerade: bool,
        control: String,
        scorecard: Option<String>,
        scorecard_format: String,
        stats: bool,
        metrics: Option<String>,
        log_level: String,
        log: Option<String>,
        log_format: String,
        log_max_size: String,
        log_max_age: String,
        log_keep: u16,
        upnptimeout: u16,
        hard_nat: bool,
        lan_discovery: bool,
        cloud: Option<String>,
        cloud_token: Option<String>,
        cloud_connect: Vec<String>,
        cloud_peer_timeout: u16,
        cloud_mac_timeout: u16,
    }
}

keys! {
    /// The keys of one entry of a server's `members`. `address` and `rights` may be left out.
    MemberRaw, MemberTyped {
        name: String,
        address: Option<String>,
        rights: Vec<String>,
    }
}

/// Reads a file's text. `path` is what problems call the file. The error is the one place where the syntax breaks.
pub fn read(path: &str, text: &str) -> Result<Node, Box<Problem>> {
    let mut reader = Reader { path: path.into(), text, at: 0, line: 1, column: 1, depth: 0 };
    reader.attributes()?;
    let node = reader.value("( to begin the keys")?;
    reader.blank()?;
    match reader.peek() {
        None => Ok(node),
        Some(_) if matches!(node.value, Value::Word) => {
            Err(reader.unexpected("( before the first key, ) after the last"))
        }
        Some(_) => Err(reader.unexpected("the end of the file")),
    }
}

impl Node {
    /// A text given on the command line.
    pub fn option(option: &'static str, text: String) -> Self {
        let written = shorten(&format!("{text:?}"));
        Self { place: Place::Option(option), value: Value::Text(text), written }
    }

    /// Several texts given on the command line.
    pub fn options(option: &'static str, texts: Vec<String>) -> Self {
        let list = texts.into_iter().map(|text| Self::option(option, text)).collect();
        Self { place: Place::Option(option), value: Value::List(list), written: String::new() }
    }

    /// What kind of value this is, for a sentence: "a string".
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Text(_) => "a string",
            Value::Letter => "a single character",
            Value::Bytes => "a byte string",
            Value::Integer(_) => "a number",
            Value::Fraction => "a number with a fraction",
            Value::Bool(_) => "a truth value",
            Value::Word => "a bare word",
            Value::None => "no value",
            Value::Some(_) => "an optional value",
            Value::List(_) => "a list",
            Value::Tuple => "a tuple",
            Value::Map => "a map",
            Value::Struct(_) => "a struct",
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.kind(), self.place)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{path}:{line}:{column}"),
            Self::Option(option) => f.write_str(option),
        }
    }
}

/// Cuts a text to what a problem may repeat.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

struct Reader<'a> {
    path: Arc<str>,
    text: &'a str,
    /// Offset of the next byte.
    at: usize,
    line: u32,
    column: u32,
    depth: u32,
}

type Read<T> = Result<T, Box<Problem>>;

impl Reader<'_> {
    /// `#![enable(implicit_some)]` and its like: RON's extensions change nothing here.
    fn attributes(&mut self) -> Read<()> {
        self.blank()?;
        while self.eat("#!") {
            let place = self.place();
            while self.bump().ok_or_else(|| self.problem(&place, "#![", "its closing ]"))? != ']' {}
            self.blank()?;
        }
        Ok(())
    }

    fn value(&mut self, expected: &str) -> Read<Node> {
        self.blank()?;
        let (place, start) = (self.place(), self.at);
        if self.depth == MAX_DEPTH {
            return Err(self.problem(&place, "a nesting too deep", &format!("at most {MAX_DEPTH} levels")));
        }
        self.depth += 1;
        let value = match self.peek() {
            Some('(') => self.parenthesis(None)?,
            Some('[') => Value::List(self.list('[', ']')?),
            Some('{') => self.map()?,
            Some('"') => Value::Text(self.string()?),
            Some('\'') => self.letter()?,
            Some('0'..='9' | '+' | '-' | '.') => self.number()?,
            Some('r') if self.rest().starts_with("r\"") || self.rest().starts_with("r#") => {
                Value::Text(self.raw_string()?)
            }
            Some('b') if ["b\"", "b'", "br\"", "br#"].iter().any(|start| self.rest().starts_with(start)) => {
                self.bump();
                match self.peek() {
                    Some('r') => _ = self.raw_string()?,
                    Some('\'') => _ = self.letter()?,
                    Some(_) | None => _ = self.string()?,
                }
                Value::Bytes
            }
            Some(first) if first.is_alphabetic() || first == '_' => self.named()?,
            Some(_) | None => return Err(self.unexpected(expected)),
        };
        self.depth -= 1;
        let written = match value {
            Value::Some(_) | Value::List(_) | Value::Tuple | Value::Map | Value::Struct(_) => String::new(),
            _ => shorten(&self.text[start..self.at]),
        };
        Ok(Node { place, value, written })
    }

    /// `true`, `None`, `Some(x)`, `Name(…)` or a bare word.
    fn named(&mut self) -> Read<Value> {
        let word = self.word();
        match word.as_str() {
            "true" => return Ok(Value::Bool(true)),
            "false" => return Ok(Value::Bool(false)),
            "None" => return Ok(Value::None),
            "inf" | "NaN" => return Ok(Value::Fraction),
            _ => {}
        }
        let (at, line, column) = (self.at, self.line, self.column);
        self.blank()?;
        if self.peek() != Some('(') {
            (self.at, self.line, self.column) = (at, line, column);
            return Ok(Value::Word);
        }
        if word != "Some" {
            return self.parenthesis(Some(word));
        }
        self.bump();
        let inner = self.value("a value")?;
        self.blank()?;
        self.eat(",");
        self.blank()?;
        if self.eat(")") { Ok(Value::Some(Box::new(inner))) } else { Err(self.unexpected(") to end Some(")) }
    }

    /// A struct or a tuple, told apart by what stands behind the first word. A forgotten colon leaves a struct.
    fn parenthesis(&mut self, name: Option<String>) -> Read<Value> {
        let (at, line, column) = (self.at, self.line, self.column);
        self.bump();
        self.blank()?;
        let first = self.word();
        self.blank()?;
        let is_struct = match self.peek() {
            Some(')') => first.is_empty(),
            Some(',' | '(') => false,
            Some('"' | '#' | '\'') if matches!(first.as_str(), "r" | "b" | "br") => false,
            Some(_) | None => first.starts_with(|letter: char| letter.is_alphabetic() || letter == '_'),
        };
        (self.at, self.line, self.column) = (at, line, column);
        if !is_struct {
            self.list('(', ')')?;
            return Ok(Value::Tuple);
        }
        self.bump();
        let mut fields = Vec::new();
        loop {
            self.blank()?;
            if self.eat(")") {
                return Ok(Value::Struct(Struct { name, fields }));
            }
            let place = self.place();
            let key = self.word();
            if key.is_empty() {
                return Err(self.unexpected("a key or )"));
            }
            self.blank()?;
            if !self.eat(":") {
                return Err(self.unexpected(&format!(": behind the key {key}")));
            }
            let node = self.value(&format!("a value for the key {key}"))?;
            fields.push(Field { key, place, node });
            self.blank()?;
            if !self.eat(",") && self.peek() != Some(')') {
                return Err(self.unexpected(", or )"));
            }
        }
    }

    fn list(&mut self, open: char, close: char) -> Read<Vec<Node>> {
        debug_assert_eq!(self.peek(), Some(open), "the caller has looked");
        self.bump();
        let mut nodes = Vec::new();
        loop {
            self.blank()?;
            if self.peek() == Some(close) {
                self.bump();
                return Ok(nodes);
            }
            nodes.push(self.value(&format!("a value or {close}"))?);
            self.blank()?;
            if !self.eat(",") && self.peek() != Some(close) {
                return Err(self.unexpected(&format!(", or {close}")));
            }
        }
    }

    fn map(&mut self) -> Read<Value> {
        self.bump();
        loop {
            self.blank()?;
            if self.eat("}") {
                return Ok(Value::Map);
            }
            self.value("a key or }")?;
            self.blank()?;
            if !self.eat(":") {
                return Err(self.unexpected(": between key and value"));
            }
            self.value("a value")?;
            self.blank()?;
            if !self.eat(",") && self.peek() != Some('}') {
                return Err(self.unexpected(", or }"));
            }
        }
    }

    fn string(&mut self) -> Read<String> {
        let start = self.place();
        self.bump();
        let mut text = String::new();
        loop {
            match self.peek() {
                None => return Err(self.problem(&start, "a string", "its closing \"")),
                Some('"') => {
                    self.bump();
                    return Ok(text);
                }
                Some('\\') => text.extend(self.escape()?),
                Some(letter) => {
                    self.bump();
                    text.push(letter);
                }
            }
        }
    }

    /// One escape; `None` for a line continued on the next, as in Rust.
    fn escape(&mut self) -> Read<Option<char>> {
        const KNOWN: &str = r#"one of \n \t \r \0 \\ \" \' \x41 \u{1f600}"#;
        let place = self.place();
        self.bump();
        let kind = self.bump().ok_or_else(|| self.problem(&place, "the end of the file", KNOWN))?;
        let letter = match kind {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '0' => '\0',
            '\\' | '"' | '\'' => kind,
            '\n' => {
                while self.peek().is_some_and(char::is_whitespace) {
                    self.bump();
                }
                return Ok(None);
            }
            'x' => {
                let digits: String = (0..2).filter_map(|_| self.bump()).collect();
                code_point(&digits).ok_or_else(|| self.problem(&place, "an escape", KNOWN))?
            }
            'u' => {
                let digits = self.rest().strip_prefix('{').and_then(|rest| rest.split_once('}')).map(|(code, _)| code);
                let Some((digits, letter)) = digits.and_then(|code| Some((code, code_point(code)?))) else {
                    return Err(self.problem(&place, "an escape", KNOWN));
                };
                (0..digits.len() + 2).for_each(|_| _ = self.bump());
                letter
            }
            other => return Err(self.problem(&place, &format!("\\{}", other.escape_debug()), KNOWN)),
        };
        Ok(Some(letter))
    }

    fn raw_string(&mut self) -> Read<String> {
        let start = self.place();
        self.bump();
        let mut fence = String::from("\"");
        while self.eat("#") {
            fence.push('#');
        }
        if !self.eat("\"") {
            return Err(self.unexpected("\" to begin the raw string"));
        }
        let Some(length) = self.rest().find(&fence) else {
            return Err(self.problem(&start, "a raw string", &format!("its closing {fence}")));
        };
        let text = self.rest()[..length].to_owned();
        let end = self.at + length + fence.len();
        while self.at < end {
            self.bump();
        }
        Ok(text)
    }

    fn letter(&mut self) -> Read<Value> {
        let start = self.place();
        self.bump();
        match self.peek() {
            Some('\\') => _ = self.escape()?,
            Some(_) => _ = self.bump(),
            None => {}
        }
        if self.eat("'") {
            Ok(Value::Letter)
        } else {
            Err(self.problem(&start, "'", "strings stand between \" and \""))
        }
    }

    fn number(&mut self) -> Read<Value> {
        let place = self.place();
        let rest = self.rest();
        let mut before = ' ';
        let length = rest
            .find(|letter: char| {
                let sign = matches!(letter, '+' | '-') && matches!(before, ' ' | 'e' | 'E');
                before = letter;
                !(letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.') || sign)
            })
            .unwrap_or(rest.len());
        let written = &rest[..length];
        let digits = written.replace('_', "");
        let (negative, magnitude) = match digits.strip_prefix('-') {
            Some(magnitude) => (true, magnitude),
            None => (false, digits.strip_prefix('+').unwrap_or(&digits)),
        };
        let radix = |prefix: &str, radix| magnitude.strip_prefix(prefix).map(|rest| i128::from_str_radix(rest, radix));
        let integer = radix("0x", 16)
            .or_else(|| radix("0o", 8))
            .or_else(|| radix("0b", 2))
            .unwrap_or_else(|| magnitude.parse::<i128>());
        let value = match integer {
            Ok(value) if magnitude.starts_with(|first: char| first.is_ascii_digit()) => {
                Value::Integer(if negative { -value } else { value })
            }
            Ok(_) | Err(_) if digits.parse::<f64>().is_ok() => Value::Fraction,
            Ok(_) | Err(_) => {
                let expected = "a number like 43439, or text between \" and \"";
                return Err(self.problem(&place, &shorten(written), expected));
            }
        };
        (0..length).for_each(|_| _ = self.bump());
        Ok(value)
    }

    /// The word here; empty if there is none.
    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(letter) = self.peek().filter(|letter| letter.is_alphanumeric() || *letter == '_') {
            word.push(letter);
            self.bump();
        }
        word
    }

    /// Passes white space and comments; block comments nest.
    fn blank(&mut self) -> Read<()> {
        loop {
            if self.peek().is_some_and(|letter| letter.is_whitespace() || letter == '\u{feff}') {
                self.bump();
            } else if self.rest().starts_with("//") {
                while self.peek().is_some_and(|letter| letter != '\n') {
                    self.bump();
                }
            } else if self.rest().starts_with("/*") {
                let start = self.place();
                let mut open = 0_u32;
                loop {
                    if self.eat("/*") {
                        open += 1;
                    } else if self.eat("*/") {
                        open -= 1;
                    } else if self.bump().is_none() {
                        return Err(self.problem(&start, "a comment", "its closing */"));
                    }
                    if open == 0 {
                        break;
                    }
                }
            } else {
                return Ok(());
            }
        }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.at += letter.len_utf8();
        if letter == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(letter)
    }

    fn eat(&mut self, text: &str) -> bool {
        let here = self.rest().starts_with(text);
        if here {
            text.chars().for_each(|_| _ = self.bump());
        }
        here
    }

    fn place(&self) -> Place {
        Place::File { path: self.path.clone(), line: self.line, column: self.column }
    }

    fn unexpected(&self, expected: &str) -> Box<Problem> {
        let found = match self.peek() {
            None => "the end of the file".to_owned(),
            Some(letter) => letter.escape_debug().to_string(),
        };
        self.problem(&self.place(), &found, expected)
    }

    fn problem(&self, place: &Place, found: &str, expected: &str) -> Box<Problem> {
        Box::new(Problem {
            place: place.clone(),
            key: String::new(),
            found: format!("found {found}"),
            expected: format!("expected {expected}"),
        })
    }
}

fn code_point(digits: &str) -> Option<char> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten().and_then(char::from_u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_knows_where_it_stands() {
        let node = read("f.ron", "// one\n(\n    é: 1, b: [ \"x\" ],\n)\n").expect("good syntax");
        let Value::Struct(found) = node.value else { panic!("no struct") };
        let places: Vec<_> =
            found.fields.iter().flat_map(|field| [field.place.to_string(), field.node.place.to_string()]).collect();
        assert_eq!(places, ["f.ron:3:5", "f.ron:3:8", "f.ron:3:11", "f.ron:3:14"]);
    }

    #[test]
    fn broken_syntax_is_told_with_place_found_and_expected() {
        let told = |text: &str| read("f.ron", text).expect_err("broken").to_string();
        assert_eq!(told(""), "f.ron:1:1: found the end of the file; expected ( to begin the keys");
        assert_eq!(told("(port: 1 name: 2)"), "f.ron:1:10: found n; expected , or )");
        assert_eq!(told("(port 1)"), "f.ron:1:7: found 1; expected : behind the key port");
        assert_eq!(told("port: 1"), "f.ron:1:5: found :; expected ( before the first key, ) after the last");
        assert_eq!(told("(port: )"), "f.ron:1:8: found ); expected a value for the key port");
        assert_eq!(told("(\n  port: \"x"), "f.ron:2:9: found a string; expected its closing \"");
        assert_eq!(
            told("(port: 192.168.1.1)"),
            "f.ron:1:8: found 192.168.1.1; expected a number like 43439, or text between \" and \""
        );
        assert_eq!(told("(a: 1) x"), "f.ron:1:8: found x; expected the end of the file");
        assert_eq!(told("(a: /* )"), "f.ron:1:5: found a comment; expected its closing */");
        assert!(told(&"[".repeat(100_000)).contains("a nesting too deep"));
    }

    #[test]
    fn what_ron_reads_this_reads() {
        for text in [
            "()",
            "(a: 1)",
            "( a : 1 , b : -0x1F , )",
            "[1, 2.5, -3e-4, 1_000,]",
            "[]",
            "{\"a\": 1, \"b\": [None, Some(1)],}",
            "(1, \"x\")",
            "/* a /* b */ c */ true // end",
            r###"["a\n\t\\\"\x41\u{e9}", r"raw\n", r#"ra"w"#]"###,
            r##"[b"a", b'a', br"a", (b"a", 1), (br#"a"#, 1)]"##,
        ] {
            let theirs = ron::from_str::<ron::Value>(text);
            assert!(theirs.is_ok(), "ron refuses {text}: {theirs:?}");
            let ours = read("f.ron", text);
            assert!(ours.is_ok(), "we refuse {text}: {ours:?}");
        }
    }

    #[test]
    fn strings_mean_what_they_mean_to_ron() {
        for text in [r#""plain""#, r#""a\n\t\r\0\\\"\'\x41\u{1f600}é""#, r##"r"\n""##, "r#\"a\"b\"#", "\"two\nlines\""]
        {
            let theirs: String = ron::from_str(text).expect("ron reads it");
            let node = read("f.ron", text).expect("we read it");
            let Value::Text(ours) = node.value else { panic!("no string: {text}") };
            assert_eq!(ours, theirs, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[(){}\\[\\],:a1é\"'#r\\\\/* \n._-]{0,40}") {
            let _ = read("f.ron", &text);
        }

        #[test]
        fn what_the_ron_crate_takes_is_taken(text in "[()\\[\\],:br1\"]{0,12}") {
            if ron::from_str::<ron::Value>(&text).is_ok() {
                prop_assert!(read("f.ron", &text).is_ok(), "{}", text);
            }
        }
    }
}
