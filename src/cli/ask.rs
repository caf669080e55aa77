//! Asking the processes on this machine over their control sockets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::args::{Asked, Socket, Target};
use crate::config::cloud::CLOUD_CONTROL;
use crate::config::tunnel::TUNNEL_CONTROL;
use crate::config::{CLIENT_CONTROL, SERVER_CONTROL};
use crate::io::control_socket::{ControlError, request};

/// Nothing to ask is running.
#[derive(Debug, thiserror::Error)]
pub enum NobodyAnswers {
    #[error(
        "no server, client, cloud or tunnel is running on this machine: start one (`eps-actor help` says how), or name \
         its socket with --control"
    )]
    Nobody,
    #[error(
        "no server is running on this machine: start it with `eps-actor server`, or name its socket with --control"
    )]
    NoServer,
    #[error(
        "no client is running on this machine: start it with `eps-actor client`, or name its socket with --control"
    )]
    NoClient,
    #[error("no cloud is running on this machine: start it with `eps-actor cloud`, or name its socket with --control")]
    NoCloud,
    #[error(
        "no tunnel is running on this machine: start it with `eps-actor tunnel`, or name its socket with --control"
    )]
    NoTunnel,
}

/// Asks whichever processes `target` means; at least one answer, the server's first.
///
/// Where one answers and the other is in trouble, the trouble is logged.
pub fn ask(target: &Target, question: &Value) -> anyhow::Result<Vec<Value>> {
    let (sockets, nobody) = match (&target.socket.control, target.role) {
        (Some(path), _) => return Ok(vec![request(path, question, PATIENCE)?]),
        (None, Some(role)) => return Ok(vec![ask_role(role, None, question)?]),
        (None, None) => {
            let all = [SERVER_CONTROL, CLIENT_CONTROL, CLOUD_CONTROL, TUNNEL_CONTROL];
            (all.map(PathBuf::from), NobodyAnswers::Nobody)
        }
    };
    ask_all(&sockets, question, nobody)
}

/// Asks the process of one role.
pub fn ask_role(role: impl Into<Asked>, socket: Option<&Socket>, question: &Value) -> anyhow::Result<Value> {
    if let Some(path) = socket.and_then(|socket| socket.control.as_ref()) {
        return Ok(request(path, question, PATIENCE)?);
    }
    let (path, nobody) = match role.into() {
        Asked::Server => (SERVER_CONTROL, NobodyAnswers::NoServer),
        Asked::Client => (CLIENT_CONTROL, NobodyAnswers::NoClient),
        Asked::Cloud => (CLOUD_CONTROL, NobodyAnswers::NoCloud),
        Asked::Tunnel => (TUNNEL_CONTROL, NobodyAnswers::NoTunnel),
    };
    match request(Path::new(path), question, PATIENCE) {
        Err(ControlError::NotRunning { .. }) => Err(nobody.into()),
        answer => Ok(answer?),
    }
}

fn ask_all(sockets: &[PathBuf], question: &Value, nobody: NobodyAnswers) -> anyhow::Result<Vec<Value>> {
    let (mut answers, mut trouble) = (Vec::new(), None);
    for path in sockets {
        match request(path, question, PATIENCE) {
            Ok(answer) => answers.push(answer),
            Err(ControlError::NotRunning { .. }) => {}
            Err(error) => trouble = trouble.or(Some(error)),
        }
    }
    match trouble {
        Some(error) if answers.is_empty() => Err(error.into()),
        Some(error) => {
            log::warn!("{error}");
            Ok(answers)
        }
        None if answers.is_empty() => Err(nobody.into()),
        None => Ok(answers),
    }
}

/// How long an answer may take; a node that is well takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
pub(super) mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use serde_json::json;

    use super::*;

    /// A control socket that gives one answer to everybody, on a thread that lives as long as the test process.
    pub(in super::super) fn stand_in(path: &Path, answer: Value) {
        let listener = UnixListener::bind(path).expect("a socket");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.expect("a connection"));
                let mut line = String::new();
                if stream.read_line(&mut line).is_ok_and(|count| count > 0) {
                    let asked: Value = serde_json::from_str(&line).expect("JSON");
                    let answer = answer.clone().as_object_mut().map(|fields| {
                        fields.insert("asked".into(), asked);
                        Value::Object(fields.clone())
                    });
                    let answer = answer.expect("an object");
                    stream.get_mut().write_all(format!("{answer}\n").as_bytes()).expect("written");
                }
            }
        });
    }

    #[test]
    fn both_answer_where_both_run_and_one_where_one_runs() {
        let place = tempfile::tempdir().expect("a directory");
        let sockets = ["server.sock", "client.sock"].map(|name| place.path().join(name));
        let ask = || ask_all(&sockets, &json!({"command": "status"}), NobodyAnswers::Nobody);
        let error = ask().expect_err("nobody there").to_string();
        assert!(error.starts_with("no server, client, cloud or tunnel is running"), "{error}");
        assert_eq!(error.lines().count(), 1);

        stand_in(&sockets[1], json!({"role": "client"}));
        assert_eq!(ask().expect("one answer").len(), 1);

        stand_in(&sockets[0], json!({"role": "server"}));
        let answers = ask().expect("two answers");
        assert_eq!((&answers[0]["role"], &answers[1]["role"]), (&json!("server"), &json!("client")));
        assert_eq!(answers[0]["asked"], json!({"command": "status"}));
    }

    #[test]
    fn a_named_socket_is_asked_and_no_other() {
        let place = tempfile::tempdir().expect("a directory");
        let socket = Socket { control: Some(place.path().join("x.sock")) };
        let target = Target { role: None, socket: socket.clone() };
        let error = ask(&target, &json!({})).expect_err("nobody there").to_string();
        assert!(error.contains("x.sock"), "{error}");
        stand_in(&place.path().join("x.sock"), json!({"error": "not at a client", "more": 1}));
        assert_eq!(ask(&target, &json!({})).expect("an answer").len(), 1);
        assert!(ask_role(Asked::Server, Some(&socket), &json!({})).is_ok());
    }
}
