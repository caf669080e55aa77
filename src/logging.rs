//! The program's log: what of it is said, where it goes, and what a line looks like.
//!
//! `env_logger` filters by level and module (`RUST_LOG`) and writes to standard error; with a file in the configuration
//! lines go there instead (`io::log_file`). The level may change while the program runs. Lines whose number somebody else decides
//! go through [`limited`].

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::Serialize;

use crate::config::{LogFormat, LogSettings};
use crate::io::log_file::{LogSink, Rotation, thread_id};
use crate::proto::log_limit::LogLimit;

/// The log cannot go where it should.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{path}: the log cannot be written: {source}", path = path.display())]
    File { path: std::path::PathBuf, source: io::Error },
}

/// Starts the log; only the first call in a process counts. RUST_LOG wins over `level`.
///
/// # Errors
///
/// If the file cannot be opened.
pub fn start(level: LevelFilter, settings: &LogSettings) -> Result<(), LogError> {
    let format = settings.format;
    let sink = match &settings.file {
        None => None,
        Some(path) => {
            let rotation = Rotation { max_size: settings.max_size, max_age: settings.max_age, keep: settings.keep };
            let note = move |text: &str| {
                let mut line = String::new();
                write_line(&mut line, format, Level::Warn, module_path!(), format_args!("{text}"));
                line.into_bytes()
            };
            let sink = LogSink::open(path, rotation, complain, note);
            Some(sink.map_err(|source| LogError::File { path: path.clone(), source })?)
        }
    };
    let logger = Logger { terminal: ArcSwap::from_pointee(terminal(level, format)), sink, format };
    if LOGGER.set(logger).is_ok() {
        let logger: &'static Logger = LOGGER.get().expect("just set");
        log::set_max_level(logger.terminal.load().filter());
        // It fails if a test has a logger of its own, which is then as good.
        let _ = log::set_logger(logger);
    }
    Ok(())
}

/// Another level from here on, unless RUST_LOG says which.
pub fn set_level(level: LevelFilter) {
    let Some(logger) = LOGGER.get() else { return };
    logger.terminal.store(terminal(level, logger.format).into());
    log::set_max_level(logger.terminal.load().filter());
}

/// Opens the log's file anew, if it has one.
pub fn reopen() {
    if let Some(sink) = LOGGER.get().and_then(|logger| logger.sink.as_ref()) {
        sink.reopen();
    }
}

/// Waits a moment until the file has every line.
pub fn flush() {
    log::logger().flush();
}

/// Whether the log goes to a file.
pub fn is_in_file() -> bool {
    LOGGER.get().is_some_and(|logger| logger.sink.is_some())
}

/// Says something of a kind that strangers or peers decide the number of; what is too much is summed up once a minute.
/// Nothing is formatted or counted if the level is off.
pub fn limited(now: Instant, level: Level, kind: &'static str, text: fmt::Arguments<'_>) {
    if level > log::max_level() {
        return;
    }
    summarize(now);
    let admitted = LIMIT.lock().unwrap_or_else(PoisonError::into_inner).admits(kind, now);
    if admitted {
        log::log!(level, "{text}");
    }
}

/// Says how much [`limited`] has held back in minutes that are over.
pub fn summarize(now: Instant) {
    loop {
        let Some(summary) = LIMIT.lock().unwrap_or_else(PoisonError::into_inner).poll_summary(now) else { return };
        log::info!("{summary}");
    }
}

static LOGGER: OnceLock<Logger> = OnceLock::new();
static LIMIT: Mutex<LogLimit> = Mutex::new(LogLimit::new());

struct Logger {
    /// Filters for the file as well.
    terminal: ArcSwap<env_logger::Logger>,
    sink: Option<LogSink>,
    format: LogFormat,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.terminal.load().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let terminal = self.terminal.load();
        match &self.sink {
            None => terminal.log(record),
            Some(sink) if terminal.matches(record) => {
                let mut line = String::with_capacity(128);
                write_line(&mut line, self.format, record.level(), record.target(), *record.args());
                sink.push(line.as_bytes());
            }
            Some(_) => {}
        }
    }

    fn flush(&self) {
        if let Some(sink) = &self.sink {
            sink.flush();
        }
    }
}

/// Standard error: lines like `2026-11-21T02:38:00.123Z info  text`, or JSON.
fn terminal(level: LevelFilter, format: LogFormat) -> env_logger::Logger {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level).parse_env("RUST_LOG").format(move |line, record| match format {
        LogFormat::Text => {
            let level = record.level().as_str().to_ascii_lowercase();
            writeln!(line, "{:.3} {level:<5} {}", Timestamp::now(), Plain(record.args()))
        }
        LogFormat::Json => {
            let mut text = String::new();
            write_line(&mut text, format, record.level(), record.target(), *record.args());
            line.write_all(text.as_bytes())
        }
    });
    builder.build()
}

fn complain(text: &str) {
    // Nobody may be left to read this either.
    let _ = writeln!(io::stderr(), "eps-actor: {text}");
}

/// A line of the file. Text has the layout of EPS Conduits: date, time, `[process:thread]` in hexadecimal, level, dash,
/// text; times are UTC.
fn write_line(line: &mut String, format: LogFormat, level: Level, target: &str, text: fmt::Arguments<'_>) {
    let (now, level) = (Timestamp::now(), level.as_str().to_ascii_lowercase());
    match format {
        LogFormat::Text => {
            let (process, text) = (format!("{:#x}", std::process::id()), Plain(&text));
            let time = now.strftime("%Y-%m-%d %H:%M:%S%.6f");
            // Writing to a string cannot fail.
            let _ = writeln!(line, "{time} [{process:0>10}:{:#018x}] {level} - {text}", thread_id());
        }
        LogFormat::Json => {
            let object = Line { time: format!("{now:.6}"), level: &level, target, message: &text.to_string() };
            line.push_str(&serde_json::to_string(&object).expect("text only"));
            line.push('\n');
        }
    }
}

/// A line of JSON. Additions are allowed, renames are not.
#[derive(Serialize)]
struct Line<'a> {
    /// RFC 3339.
    time: String,
    level: &'a str,
    /// The module that speaks.
    target: &'a str,
    message: &'a str,
}

/// A text without control characters, which could move a reader's cursor; line ends stay, for blocks.
struct Plain<'a>(&'a fmt::Arguments<'a>);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escaped<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl fmt::Write for Escaped<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                text.chars().try_for_each(|letter| match letter {
                    '\n' | '\t' => self.0.write_char(letter),
                    _ if letter.is_control() => write!(self.0, "{}", letter.escape_default()),
                    _ => self.0.write_char(letter),
                })
            }
        }
        write!(Escaped(f), "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_text_has_the_layout_of_the_manual() {
        // 2014-06-23 20:31:59.634678 [00000x3f32:0x00007fe87f970780] info - in: 3.81 MBps (30.50 Mbps), …
        let line = line(LogFormat::Text, "in: 3.81 MBps");
        let (date, rest) = line.split_at(27);
        assert!(date.bytes().zip("0000-00-00 00:00:00.000000 ".bytes()).all(|(one, other)| match other {
            b'0' => one.is_ascii_digit(),
            other => one == other,
        }));
        let manual = "[00000x3f32:0x00007fe87f970780] ";
        let (ids, text) = rest.split_at(manual.len());
        assert_eq!(text, "info - in: 3.81 MBps\n");
        let (process, thread) = ids[1..].split_once(':').expect("two numbers");
        assert_eq!(process, format!("{:0>10}", format!("{:#x}", std::process::id())));
        assert!(thread.starts_with("0x0000") && thread.ends_with("] "), "{thread}");
    }

    #[test]
    fn a_line_of_json_has_time_level_target_and_message() {
        let line = line(LogFormat::Json, "a \"b\"\nc\u{1b}");
        assert_eq!(line.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["level"], "info");
        assert_eq!(value["target"], "eps_actor::logging::tests");
        assert_eq!(value["message"], "a \"b\"\nc\u{1b}");
        let time = value["time"].as_str().expect("text");
        assert!(time.ends_with('Z') && time.parse::<Timestamp>().is_ok(), "{time}");
    }

    #[test]
    fn control_characters_are_shown_not_obeyed() {
        assert!(line(LogFormat::Text, "a\u{1b}[2Jb\r\u{7f}").ends_with(" - a\\u{1b}[2Jb\\r\\u{7f}\n"));
        assert!(line(LogFormat::Text, "a\n\tb").ends_with(" - a\n\tb\n"));
    }

    fn line(format: LogFormat, text: &str) -> String {
        let mut line = String::new();
        write_line(&mut line, format, Level::Info, module_path!(), format_args!("{text}"));
        line
    }
}
