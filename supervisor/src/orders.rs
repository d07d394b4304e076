//! What an operator orders, and when it counts as done.

use std::time::{Duration, Instant};

use serde_json::{Map, json};

use crate::exits::REMAINS_PATIENCE;
use crate::plugin::Waiting;
use crate::state::{Event, State, Want};
use crate::{Level, Order, OrderError, Supervisor, object};

impl Supervisor {
    pub(crate) fn on_order(
        &mut self,
        id: String,
        order: Order,
        done: Box<dyn FnOnce(Result<(), OrderError>) + Send>,
    ) {
        let Some(index) = self.plugins.iter().position(|p| p.metadata.id == id && !p.removed) else {
            return done(Err(OrderError::Unknown(id)));
        };
        if self.stopping {
            return done(Err(OrderError::Stopping));
        }
        let policy = &self.settings.adjustable.policy;
        // The whole ladder, a start, and a moment for the kernel.
        let patience = policy.stop_grace + policy.term_grace * 2 + REMAINS_PATIENCE + policy.ready_timeout;
        let plugin = &mut self.plugins[index];
        let given_up = matches!(plugin.state, State::Failed { .. });
        let (want, enabled, event) = match order {
            Order::Enable => (Want::Up, true, Event::Wanted),
            Order::Start => (Want::Up, plugin.enabled, Event::Wanted),
            Order::Restart => (Want::Up, plugin.enabled, Event::RestartAsked),
            Order::Disable => (Want::Down, false, Event::Wanted),
            Order::Stop => (Want::Down, plugin.enabled, Event::Wanted),
            Order::ResetFailed => (plugin.want, plugin.enabled, Event::ResetFailed),
        };
        let event = match (event, want, plugin.state) {
            // An operator who starts a plugin that crashed or was given up has mended it.
            (Event::Wanted, Want::Up, State::Failed { .. } | State::Crashed { .. }) => Event::RestartAsked,
            (event, ..) => event,
        };
        self.outlet.log(Level::Info, Some(&id), "Plugin order", object(json!({ "order": order.word() })));
        plugin.want = want;
        if matches!(order, Order::Restart | Order::Stop | Order::Disable) {
            plugin.stop_cause = Some(format!("{} was ordered", order.word()));
        }
        if plugin.enabled != enabled {
            plugin.enabled = enabled;
            self.outlet.record(&id, if enabled { "enabled" } else { "disabled" }, json!({}));
            let message = if enabled { "Plugin enabled" } else { "Plugin disabled" };
            self.outlet.log(Level::Info, Some(&id), message, Map::new());
            // The answer to clients of one that does not run depends on it.
            self.publish(index);
        }
        if order == Order::ResetFailed {
            let plugin = &self.plugins[index];
            let given_up = plugin.fault.as_ref().map(|fault| &fault.why);
            let details = json!({ "failures": plugin.failures(), "given_up": given_up });
            self.outlet.record(&id, "reset_failed", details);
        }
        if order == Order::ResetFailed && !(given_up && want == Want::Up) {
            self.drive(index, event);
            return done(Ok(()));
        }
        let plugin = &mut self.plugins[index];
        let until = Instant::now() + patience + Duration::from_secs(1);
        plugin.waiting.push(Waiting { order, after_generation: plugin.generation, until, done });
        self.drive(index, event);
    }

    /// Answers those whose order is done, cannot be done any more, or takes too long.
    pub(crate) fn settle(&mut self, index: usize) {
        let now = Instant::now();
        let plugin = &mut self.plugins[index];
        if plugin.waiting.is_empty() {
            return;
        }
        let (state, want, generation) = (plugin.state, plugin.want, plugin.generation);
        let waits_for = plugin.waits_for(now);
        let failed = |why: &str| Err(OrderError::Failed(why.to_owned()));
        let mut still = vec![];
        for waiting in std::mem::take(&mut plugin.waiting) {
            let outcome = match waiting.order {
                Order::Enable | Order::Start | Order::Restart | Order::ResetFailed => match state {
                    _ if want == Want::Down => failed("it was stopped meanwhile"),
                    State::Running { .. }
                        if waiting.order != Order::Restart || generation > waiting.after_generation =>
                    {
                        Ok(())
                    }
                    State::Failed { .. } | State::Crashed { .. } => failed(&waits_for),
                    State::Starting { .. }
                    | State::Running { .. }
                    | State::Stopping { .. }
                    | State::Stopped
                        if now < waiting.until =>
                    {
                        still.push(waiting);
                        continue;
                    }
                    State::Starting { .. }
                    | State::Running { .. }
                    | State::Stopping { .. }
                    | State::Stopped => failed(&waits_for),
                },
                Order::Disable | Order::Stop => match state {
                    State::Stopped => Ok(()),
                    _ if want == Want::Up => failed("it was started again meanwhile"),
                    _ if now < waiting.until => {
                        still.push(waiting);
                        continue;
                    }
                    _ => failed(&waits_for),
                },
            };
            (waiting.done)(outcome);
        }
        self.plugins[index].waiting = still;
    }
}
