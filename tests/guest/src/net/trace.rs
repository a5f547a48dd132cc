//! What the kernel is doing, told as it does it (Linux: the function_graph tracer).
//!
//! Each function that is a stage of a packet's way says so in its first line: it is entered there, and left
//! when the value that it holds goes. In between it may say what it changed. A [`Machine`] that has a
//! [`Tracer`] hears of it; any other has none at compile time, and of all this nothing is left in the program.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

use super::{Kernel, Machine};
use crate::transport::Transport;

/// Something that a stage changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What, by its name in Linux where it has one.
    pub what: &'static str,
    /// What became of it.
    pub how: String,
}

/// A stage that a packet went through, with all that it called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The function's name in Linux.
    pub name: &'static str,
    /// The CPU that it ran on; none for hardware.
    pub cpu: Option<usize>,
    /// How many stages were entered before it, since the tracer was made.
    pub nth: u64,
    /// When it was entered, in nanoseconds of the machine's time.
    pub entered: u64,
    /// When it was left.
    pub left: u64,
    /// What it changed itself, in order.
    pub changes: Vec<Change>,
    /// The stages that it called, in order; an interrupt that came meanwhile is one of them.
    pub calls: Vec<Self>,
}

#[derive(Debug, Default)]
struct Recording {
    /// Stages that were entered and not left, each within the one before.
    open: Vec<Stage>,
    /// Those that nobody called.
    roots: Vec<Stage>,
    /// How many were entered.
    entered: u64,
}

impl Recording {
    fn stage(&mut self, name: &'static str, cpu: Option<usize>, now: u64) -> Stage {
        self.entered += 1;
        Stage {
            name,
            cpu,
            nth: self.entered - 1,
            entered: now,
            left: now,
            changes: Vec::new(),
            calls: Vec::new(),
        }
    }
}

struct Shared {
    clock: Box<dyn Fn() -> u64>,
    recording: RefCell<Recording>,
}

/// Who hears of stages and keeps them.
#[derive(Clone)]
pub struct Tracer(Rc<Shared>);

impl Tracer {
    /// One that has heard of nothing; `clock` is the machine's, in nanoseconds.
    pub fn new(clock: impl Fn() -> u64 + 'static) -> Self {
        Self(Rc::new(Shared {
            clock: Box::new(clock),
            recording: RefCell::default(),
        }))
    }

    /// A stage is entered; it is left when the value is dropped.
    #[must_use]
    pub fn enter(&self, name: &'static str, cpu: usize) -> Span {
        let now = (self.0.clock)();
        let mut recording = self.0.recording.borrow_mut();
        let stage = recording.stage(name, Some(cpu), now);
        recording.open.push(stage);
        OPEN.with_borrow_mut(|open| open.push(self.clone()));
        Span::new(true)
    }

    /// A stage of hardware went by: no CPU was at it, whatever they are doing.
    pub fn hardware(&self, name: &'static str, changes: Vec<Change>) {
        let now = (self.0.clock)();
        let mut recording = self.0.recording.borrow_mut();
        let stage = recording.stage(name, None, now);
        recording.roots.push(Stage { changes, ..stage });
    }

    /// The innermost stage changed something.
    pub fn changed(&self, what: &'static str, how: String) {
        if let Some(stage) = self.0.recording.borrow_mut().open.last_mut() {
            stage.changes.push(Change { what, how });
        }
    }

    fn leave(&self) {
        let mut recording = self.0.recording.borrow_mut();
        let Some(mut stage) = recording.open.pop() else {
            return;
        };
        stage.left = (self.0.clock)();
        let caller = recording.open.last_mut();
        match caller {
            Some(caller) => caller.calls.push(stage),
            None => recording.roots.push(stage),
        }
    }

    /// All stages since the last call that nobody called and that were left, in the order in which they were entered.
    #[must_use]
    pub fn take(&self) -> Vec<Stage> {
        let mut roots = std::mem::take(&mut self.0.recording.borrow_mut().roots);
        roots.sort_unstable_by_key(|stage| stage.nth);
        roots
    }
}

thread_local! {
    /// Who hears of the stages of this thread that were entered and not left.
    static OPEN: RefCell<Vec<Tracer>> = const { RefCell::new(Vec::new()) };
}

/// A stage that was entered and not left. Stages nest, so it does not have to know who hears of it: whoever heard last.
pub struct Span {
    heard: bool,
    /// It stays on its thread.
    thread: PhantomData<*const ()>,
}

impl Span {
    #[inline(always)] // nothing is left of it without a tracer
    fn new(heard: bool) -> Self {
        Self {
            heard,
            thread: PhantomData,
        }
    }

    /// Of a stage that nobody is told of, if there is no tracer.
    #[inline(always)] // nothing is left of it without a tracer
    pub(crate) fn of(tracer: Option<&Tracer>, name: &'static str, cpu: usize) -> Self {
        match tracer {
            Some(tracer) => tracer.enter(name, cpu),
            None => Self::new(false),
        }
    }
}

impl Drop for Span {
    #[inline(always)] // nothing is left of it without a tracer
    fn drop(&mut self) {
        if self.heard {
            leave();
        }
    }
}

/// The innermost stage of this thread is left.
#[cold]
#[inline(never)]
fn leave() {
    if let Some(tracer) = OPEN.with_borrow_mut(Vec::pop) {
        tracer.leave();
    }
}

/// A machine whose kernel is traced.
#[derive(Clone)]
pub struct Traced<M> {
    /// The machine.
    pub machine: M,
    /// Who hears of its stages.
    pub tracer: Tracer,
}

impl<M: Machine + Clone + 'static> Traced<M> {
    /// Has a tracer hear of `machine`.
    pub fn new(machine: M) -> Self {
        let clock = machine.clone();
        Self {
            machine,
            tracer: Tracer::new(move || clock.now()),
        }
    }
}

impl<M: Machine> Machine for Traced<M> {
    fn now(&self) -> u64 {
        self.machine.now()
    }

    fn spend(&self, ns: u64) {
        self.machine.spend(ns);
    }

    fn tracer(&self) -> Option<&Tracer> {
        Some(&self.tracer)
    }
}

impl<T: Transport, M: Machine> Kernel<T, M> {
    /// The function that calls this is the stage `name`, as long as it keeps the value.
    #[inline(always)] // nothing is left of it without a tracer
    pub(crate) fn stage(&self, name: &'static str) -> Span {
        Span::of(self.machine.tracer(), name, self.cpu)
    }

    /// The stage changed something; `how` is asked only if somebody listens.
    #[inline(always)] // nothing is left of it without a tracer
    pub(crate) fn changed(&self, what: &'static str, how: impl FnOnce() -> String) {
        if let Some(tracer) = self.machine.tracer() {
            tracer.changed(what, how());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn stages_nest_and_have_their_times() {
        let now = Rc::new(Cell::new(5));
        let clock = now.clone();
        let tracer = Tracer::new(move || clock.get());
        {
            let _outer = tracer.enter("outer", 1);
            tracer.changed("a", "0 -> 1".into());
            now.set(7);
            drop(tracer.enter("inner", 1));
            let change = Change {
                what: "octets",
                how: "64".into(),
            };
            tracer.hardware("dma", vec![change]);
            tracer.changed("b", "gone".into());
            now.set(9);
        }
        drop(tracer.enter("next", 0));
        let stages = tracer.take();
        let [outer, dma, next] = &stages[..] else {
            panic!("{stages:?}");
        };
        assert_eq!((outer.name, outer.cpu), ("outer", Some(1)));
        assert_eq!((outer.entered, outer.left), (5, 9));
        let changed: Vec<_> = outer.changes.iter().map(|change| change.what).collect();
        assert_eq!(changed, ["a", "b"]);
        let [inner] = &outer.calls[..] else {
            panic!("{outer:?}");
        };
        assert_eq!((inner.name, inner.entered, inner.left), ("inner", 7, 7));
        assert_eq!((next.name, next.entered), ("next", 9));
        assert_eq!((dma.name, dma.cpu, dma.entered), ("dma", None, 7));
        assert_eq!(dma.changes[0].how, "64");
        assert_eq!(tracer.take(), [], "they are given once");
    }

    #[test]
    fn an_open_stage_is_not_given_yet() {
        let tracer = Tracer::new(|| 0);
        let open = tracer.enter("open", 0);
        assert_eq!(tracer.take(), []);
        drop(open);
        assert_eq!(tracer.take().len(), 1);
    }

    #[test]
    fn without_a_tracer_a_span_is_nothing() {
        assert!(!Span::of(None, "nothing", 0).heard);
    }
}
