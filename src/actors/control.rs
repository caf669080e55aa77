//! Control: the Unix socket that `status` and its kind speak to.
//!
//! What it shows comes from published views, so that it answers while other actors are busy or being restarted; what it
//! does is asked of the actor concerned. A restart loses the connections of the moment.

use std::sync::Arc;

use futures_lite::future;
use futures_util::future::BoxFuture;
use serde_json::Value;
use xtra::{Actor, Mailbox};

use super::ext::{Service, StopReason, only_messages};
use crate::io::control_socket::ControlListener;

/// Answers one request.
pub type Answer = Arc<dyn Fn(Value) -> BoxFuture<'static, Result<Value, String>> + Send + Sync>;

/// The actor.
pub struct Control {
    listener: Arc<ControlListener>,
    answer: Answer,
}

impl Control {
    pub fn new(listener: Arc<ControlListener>, answer: Answer) -> Self {
        Self { listener, answer }
    }
}

impl Actor for Control {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

super::ext::answers_pings!(Control);

impl Service for Control {
    const NAME: &'static str = "control";

    /// Only the supervisor's pings come by the mailbox: it serves until the supervisor drops it.
    async fn run(&mut self, mailbox: &Mailbox<Self>) -> StopReason {
        let (listener, answer) = (self.listener.clone(), self.answer.clone());
        let serve = async {
            listener.accept_loop(move |request| answer(request)).await;
            StopReason::Failed("the control socket was closed".into())
        };
        future::or(serve, only_messages(self, mailbox)).await
    }
}
