//! Model of the protocol of lock and execution: two requests for one target, and two controllers
//! that both act as leader. The caches of one controller lag, each kind independently. Controllers
//! crash between any two requests to the API server; creates and starts are committed late, or sent
//! by a controller that was suspended.
//!
//! The checker explores every order of events within the bounds, without assumptions about time.
//! Each guard of the implementation can be disabled: the checker must then find the violation that
//! the guard prevents.

#![expect(
    clippy::struct_excessive_bools,
    reason = "the guards and the facts are independent of each other"
)]

use rstest::rstest;
use stateright::{Checker, HasDiscoveries, Model, Property};

const REQUESTS: usize = 2;
const CONTROLLERS: usize = 2;
/// With this many faults or more, Jobs and pods share one watch, which cuts the states to a third.
const JOINT_WATCH_FAULTS: u8 = 2;

/// The guards of the protocol.
#[derive(Clone, Copy, Debug)]
struct Guards {
    /// The Lease is written with the resourceVersion at which it was read.
    lease_versions: bool,
    /// The status is written with the resourceVersion at which it was read.
    status_versions: bool,
    /// An execution is created suspended, so that a late create runs nothing.
    creates_suspended: bool,
    /// An execution is started only after its uid is stored in the status.
    stores_before_start: bool,
    /// A start names the uid, so that another object with the same name is not started.
    start_names_uid: bool,
    /// An execution is declared deleted only after an uncached read.
    reads_execution: bool,
    /// The lock is freed only after an uncached read of what is left of the execution.
    reads_remains: bool,
    /// The sweep frees the lock of a removed holder only when nothing of its execution is left.
    sweep_reads_remains: bool,
}

const ALL: Guards = Guards {
    lease_versions: true,
    status_versions: true,
    creates_suspended: true,
    stores_before_start: true,
    start_names_uid: true,
    reads_execution: true,
    reads_remains: true,
    sweep_reads_remains: true,
};

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Phase {
    Pending,
    Running,
    Ended,
    /// The finalizer was removed by another client, so the object no longer exists.
    Removed,
}

/// A WorkflowExecution. Every write changes the value, so the value stands for the resourceVersion.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Wfe {
    phase: Phase,
    cancelled: bool,
    /// Uid of the execution, once stored.
    execution: Option<u8>,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Progress {
    Suspended,
    Active,
    Ended,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Job {
    uid: u8,
    progress: Progress,
}

/// The objects that the API server stores, or that a cache shows.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Objects {
    wfes: [Wfe; REQUESTS],
    /// The request that holds the lock.
    holder: Option<usize>,
    jobs: [Option<Job>; REQUESTS],
    pods: [bool; REQUESTS],
}

impl Objects {
    /// Whether an execution or a pod may still change the target.
    fn is_open(&self, request: usize) -> bool {
        let open = |job: Job| job.progress != Progress::Ended;
        self.pods[request] || self.jobs[request].is_some_and(open)
    }
}

/// State of a controller's pass between two requests to the API server.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Pass {
    request: usize,
    /// The version of the WorkflowExecution that the other fields belong to.
    wfe: Wfe,
    taken: bool,
    /// Uid in the response of the create.
    created: Option<u8>,
    /// Result of the uncached read of the execution.
    #[expect(
        clippy::option_option,
        reason = "whether it was read, and what was found"
    )]
    read: Option<Option<Job>>,
    /// Whether something of the execution was left, by an uncached read.
    remains: Option<bool>,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Controller {
    cache: Objects,
    /// Whether the lock was written after the cached version: its resourceVersion differs.
    lock_changed: bool,
    pass: Option<Pass>,
}

impl Controller {
    fn fresh(real: Objects) -> Self {
        Self {
            cache: real,
            lock_changed: false,
            pass: None,
        }
    }
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct State {
    real: Objects,
    controllers: [Controller; CONTROLLERS],
    /// Number of objects created so far; also the uid of the last one.
    created: [u8; REQUESTS],
    /// Number of executions started so far.
    started: [u8; REQUESTS],
    /// Creates whose sender has crashed.
    creates_in_flight: [bool; REQUESTS],
    /// Starts whose sender has crashed, by uid.
    starts_in_flight: [Option<u8>; REQUESTS],
    /// An execution was declared deleted that exists.
    falsely_deleted: bool,
    /// Number of faults that may still occur.
    faults: u8,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Kind {
    Requests,
    Lease,
    Jobs,
    Pods,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Action {
    /// The next request of a pass, or the first of a new pass.
    Step(usize, usize),
    /// The watch of a kind delivers its events.
    Sync(usize, Kind),
    /// The controller is killed and restarts with fresh caches.
    Crash(usize),
    /// The controller is killed while its create or start is in flight.
    CrashInFlight(usize),
    CreateArrives(usize),
    StartArrives(usize),
    Sweep(usize),
    JobEnds(usize),
    PodEnds(usize),
    DeleteByHand(usize),
    Cancel(usize),
    Remove(usize),
    Retire(usize),
}

struct Protocol {
    guards: Guards,
    faults: u8,
}

/// A request to the API server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Request {
    ReadJob,
    ReadRemains,
    Take,
    Free,
    Create,
    Start(u8),
    Delete(u8),
    StoreRunning(u8),
    StoreEnded,
    StoreDeleted,
}

impl Request {
    fn is_write(self) -> bool {
        !matches!(self, Self::ReadJob | Self::ReadRemains)
    }
}

/// The rules of `decide`, as far as they are about lock and execution.
fn decide(cache: &Objects, pass: &Pass, guards: Guards) -> Option<Request> {
    let own = pass.request;
    let wfe = cache.wfes[own];
    let others = (0..REQUESTS).any(|it| it != own && cache.is_open(it));
    let ours = cache.holder == Some(own);
    match wfe.phase {
        Phase::Removed => None,
        Phase::Pending if wfe.cancelled => Some(Request::StoreEnded),
        Phase::Pending if others => None,
        Phase::Pending if !ours && cache.holder.is_some() => None,
        Phase::Pending => match pass.created {
            Some(uid) if !guards.stores_before_start && is_suspended(cache.jobs[own], uid) => {
                Some(Request::Start(uid))
            }
            Some(uid) => Some(Request::StoreRunning(uid)),
            None if ours && pass.taken => Some(Request::Create),
            None => Some(Request::Take),
        },
        Phase::Running => {
            let same = |job: &Job| Some(job.uid) == wfe.execution;
            let cached = cache.jobs[own].filter(same);
            let job = cached.or(pass.read.flatten().filter(same));
            match (job.map(|it| it.progress), pass.read) {
                (Some(Progress::Ended), _) => Some(Request::StoreEnded),
                (_, None) if wfe.cancelled => Some(Request::ReadJob),
                _ if wfe.cancelled => Some(Request::StoreEnded),
                (Some(Progress::Suspended), _) if ours => job.map(|it| Request::Start(it.uid)),
                (Some(_), _) => None,
                (None, None) if guards.reads_execution => Some(Request::ReadJob),
                (None, _) => Some(Request::StoreDeleted),
            }
        }
        Phase::Ended => {
            let open = |job: &Job| job.progress != Progress::Ended;
            match (cache.jobs[own].filter(open), pass.read) {
                (Some(_), None) => return Some(Request::ReadJob),
                (Some(_), Some(Some(job))) if open(&job) => return Some(Request::Delete(job.uid)),
                _ => {}
            }
            if !ours || cache.pods[own] || others {
                return None;
            }
            match pass.remains {
                _ if cache.jobs[own].is_some_and(|it| !open(&it)) => Some(Request::Free),
                None if guards.reads_remains => Some(Request::ReadRemains),
                Some(true) => wfe.execution.map(Request::Delete),
                None | Some(false) => Some(Request::Free),
            }
        }
    }
}

fn is_suspended(job: Option<Job>, uid: u8) -> bool {
    let suspended = Job {
        uid,
        progress: Progress::Suspended,
    };
    job == Some(suspended)
}

impl Protocol {
    /// Carries out one step of a controller's pass.
    fn step(&self, state: &mut State, number: usize, request: usize) {
        let cache = state.controllers[number].cache;
        let fresh = Pass {
            request,
            wfe: cache.wfes[request],
            taken: false,
            created: None,
            read: None,
            remains: None,
        };
        let mut pass = state.controllers[number].pass.unwrap_or(fresh);
        // Reads before a change of the WorkflowExecution are dropped.
        if pass.wfe != cache.wfes[request] {
            pass = fresh;
        }
        let decided = decide(&cache, &pass, self.guards);
        let write = decided.is_some_and(Request::is_write);
        if write {
            (pass.read, pass.remains) = (None, None);
        }
        let goes_on = decided.is_some_and(|it| self.carry_out(state, number, &mut pass, it));
        let controller = &mut state.controllers[number];
        if write {
            pass.wfe = controller.cache.wfes[request];
        }
        controller.pass = goes_on.then_some(pass);
    }

    fn carry_out(
        &self,
        state: &mut State,
        number: usize,
        pass: &mut Pass,
        request: Request,
    ) -> bool {
        let own = pass.request;
        let cache = state.controllers[number].cache;
        let lease_is_current =
            !self.guards.lease_versions || !state.controllers[number].lock_changed;
        let wfe_is_current = if self.guards.status_versions {
            cache.wfes[own] == state.real.wfes[own]
        } else {
            state.real.wfes[own].phase != Phase::Removed
        };
        let goes_on = match request {
            Request::ReadJob => {
                pass.read = Some(state.real.jobs[own]);
                true
            }
            Request::ReadRemains => {
                pass.remains = Some(state.real.is_open(own));
                true
            }
            Request::Take | Request::Free if !lease_is_current => false,
            Request::Take | Request::Free => {
                pass.taken = request == Request::Take;
                state.write_lock(pass.taken.then_some(own));
                pass.taken
            }
            Request::Create => {
                self.create_arrives(state, own);
                pass.created = state.real.jobs[own].map(|it| it.uid);
                // The response contains the object, which replaces the cached one.
                state.controllers[number].cache.jobs[own] = state.real.jobs[own];
                true
            }
            Request::Start(uid) => {
                self.start_arrives(state, own, uid);
                state.controllers[number].cache.jobs[own] = state.real.jobs[own];
                !self.guards.stores_before_start
            }
            Request::Delete(uid) => {
                let job = &mut state.real.jobs[own];
                *job = job.filter(|it| it.uid != uid);
                pass.remains = None;
                false
            }
            // The API server refuses the write: the resourceVersion has changed.
            Request::StoreRunning(_) | Request::StoreEnded | Request::StoreDeleted
                if !wfe_is_current =>
            {
                false
            }
            Request::StoreRunning(uid) => {
                let wfe = &mut state.real.wfes[own];
                (wfe.phase, wfe.execution) = (Phase::Running, Some(uid));
                true
            }
            Request::StoreEnded => {
                state.real.wfes[own].phase = Phase::Ended;
                true
            }
            Request::StoreDeleted => {
                let same = |it: Job| Some(it.uid) == state.real.wfes[own].execution;
                state.falsely_deleted |= state.real.jobs[own].is_some_and(same);
                state.real.wfes[own].phase = Phase::Ended;
                true
            }
        };
        let controller = &mut state.controllers[number];
        let cache = &mut controller.cache;
        match request {
            // After a conflict or a success, the next read shows the stored Lease.
            Request::Take | Request::Free => {
                cache.holder = state.real.holder;
                controller.lock_changed = false;
            }
            Request::StoreRunning(_) | Request::StoreEnded | Request::StoreDeleted if goes_on => {
                cache.wfes[own] = state.real.wfes[own];
            }
            _ => {}
        }
        goes_on
    }

    /// The API server commits a create; all creates of a request have the same name.
    fn create_arrives(&self, state: &mut State, request: usize) {
        if state.real.jobs[request].is_some() {
            return;
        }
        state.created[request] += 1;
        state.real.jobs[request] = Some(Job {
            uid: state.created[request],
            progress: Progress::Suspended,
        });
        if !self.guards.creates_suspended {
            self.start_arrives(state, request, state.created[request]);
        }
    }

    /// The API server commits a start.
    fn start_arrives(&self, state: &mut State, request: usize, uid: u8) {
        let Some(job) = &mut state.real.jobs[request] else {
            return;
        };
        let named = job.uid == uid || !self.guards.start_names_uid;
        if named && job.progress == Progress::Suspended {
            job.progress = Progress::Active;
            state.real.pods[request] = true;
            state.started[request] += 1;
        }
    }

    /// Frees the lock of a removed holder, and deletes its execution first.
    fn sweep(&self, state: &mut State, number: usize) -> Option<()> {
        let holder = state.controllers[number].cache.holder?;
        if state.real.wfes[holder].phase != Phase::Removed {
            return None;
        }
        if state.real.is_open(holder) && self.guards.sweep_reads_remains {
            return state.real.jobs[holder].take().map(drop);
        }
        if state.controllers[number].lock_changed {
            return None;
        }
        state.write_lock(None);
        Some(())
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let wfe = Wfe {
            phase: Phase::Pending,
            cancelled: false,
            execution: None,
        };
        let real = Objects {
            wfes: [wfe; REQUESTS],
            holder: None,
            jobs: [None; REQUESTS],
            pods: [false; REQUESTS],
        };
        vec![State {
            real,
            controllers: [Controller::fresh(real); CONTROLLERS],
            created: [0; REQUESTS],
            started: [0; REQUESTS],
            creates_in_flight: [false; REQUESTS],
            starts_in_flight: [None; REQUESTS],
            falsely_deleted: false,
            faults: self.faults,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let real = &state.real;
        let may_fault = state.faults > 0;
        for (number, controller) in state.controllers.iter().enumerate() {
            match controller.pass {
                Some(pass) => actions.push(Action::Step(number, pass.request)),
                None => actions.extend((0..REQUESTS).map(|it| Action::Step(number, it))),
            }
            let cache = &controller.cache;
            let behind = [
                (Kind::Requests, cache.wfes != real.wfes),
                (Kind::Lease, controller.lock_changed),
                (
                    Kind::Jobs,
                    (cache.jobs, cache.pods) != (real.jobs, real.pods),
                ),
                (
                    Kind::Pods,
                    cache.pods != real.pods && self.faults < JOINT_WATCH_FAULTS,
                ),
            ];
            let behind = behind.into_iter().filter(|(_, behind)| *behind);
            actions.extend(behind.map(|(kind, _)| Action::Sync(number, kind)));
            if may_fault && controller.pass.is_some_and(|pass| pass.request == 0) {
                actions.push(Action::Crash(number));
                actions.push(Action::CrashInFlight(number));
            }
            actions.push(Action::Sweep(number));
        }
        // The requests are symmetric: faults are applied to the first one only.
        for request in 0..REQUESTS {
            let may_fault = may_fault && request == 0;
            if state.creates_in_flight[request] {
                actions.push(Action::CreateArrives(request));
            }
            if state.starts_in_flight[request].is_some() {
                actions.push(Action::StartArrives(request));
            }
            match real.jobs[request].map(|it| it.progress) {
                Some(Progress::Active) => actions.push(Action::JobEnds(request)),
                Some(Progress::Ended) => actions.push(Action::Retire(request)),
                None if real.pods[request] => actions.push(Action::PodEnds(request)),
                Some(Progress::Suspended) | None => {}
            }
            if may_fault && real.jobs[request].is_some() {
                actions.push(Action::DeleteByHand(request));
            }
            let wfe = real.wfes[request];
            let open = matches!(wfe.phase, Phase::Pending | Phase::Running);
            if may_fault && open && !wfe.cancelled {
                actions.push(Action::Cancel(request));
            }
            if may_fault && open {
                actions.push(Action::Remove(request));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Step(number, request) => self.step(&mut state, number, request),
            Action::Sync(number, kind) => {
                let (controller, real) = (&mut state.controllers[number], &state.real);
                let cache = &mut controller.cache;
                match kind {
                    Kind::Requests => cache.wfes = real.wfes,
                    Kind::Lease => {
                        cache.holder = real.holder;
                        controller.lock_changed = false;
                    }
                    Kind::Jobs if self.faults < JOINT_WATCH_FAULTS => cache.jobs = real.jobs,
                    Kind::Jobs => (cache.jobs, cache.pods) = (real.jobs, real.pods),
                    Kind::Pods => cache.pods = real.pods,
                }
            }
            Action::Crash(number) => {
                state.faults -= 1;
                state.controllers[number] = Controller::fresh(state.real);
            }
            Action::CrashInFlight(number) => {
                let Controller { cache, pass, .. } = state.controllers[number];
                let pass = pass?;
                match decide(&cache, &pass, self.guards)? {
                    Request::Create => state.creates_in_flight[pass.request] = true,
                    Request::Start(uid) => state.starts_in_flight[pass.request] = Some(uid),
                    _ => return None,
                }
                state.faults -= 1;
                state.controllers[number] = Controller::fresh(state.real);
            }
            Action::CreateArrives(request) => {
                state.creates_in_flight[request] = false;
                self.create_arrives(&mut state, request);
            }
            Action::StartArrives(request) => {
                let uid = state.starts_in_flight[request].take()?;
                self.start_arrives(&mut state, request, uid);
            }
            Action::Sweep(number) => self.sweep(&mut state, number)?,
            Action::JobEnds(request) => {
                let job = state.real.jobs[request].as_mut()?;
                job.progress = Progress::Ended;
                state.real.pods[request] = false;
            }
            Action::PodEnds(request) => state.real.pods[request] = false,
            Action::DeleteByHand(request) => {
                state.faults -= 1;
                state.real.jobs[request] = None;
            }
            Action::Cancel(request) => {
                state.faults -= 1;
                state.real.wfes[request].cancelled = true;
            }
            Action::Remove(request) => {
                state.faults -= 1;
                state.real.wfes[request].phase = Phase::Removed;
            }
            Action::Retire(request) => {
                let wfe = state.real.wfes[request];
                if wfe.phase != Phase::Ended {
                    return None;
                }
                state.real.jobs[request] = None;
            }
        }
        state.controllers[0].cache = state.real;
        state.controllers[0].lock_changed = false;
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(TWO_ALIVE, |_, state: &State| {
                let active = |job: Job| job.progress == Progress::Active;
                let alive =
                    |it: &usize| state.real.pods[*it] || state.real.jobs[*it].is_some_and(active);
                (0..REQUESTS).filter(alive).count() <= 1
            }),
            Property::always(TWICE, |_, state: &State| {
                state.started.iter().all(|started| *started <= 1)
            }),
            Property::always(FALSELY_DELETED, |_, state: &State| !state.falsely_deleted),
            Property::sometimes(
                "both requests run, one after the other",
                |_, state: &State| {
                    let ended = |wfe: &Wfe| wfe.phase == Phase::Ended;
                    state.started == [1; REQUESTS]
                        && state.real.wfes.iter().all(ended)
                        && state.real.holder.is_none()
                },
            ),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.created.iter().all(|created| *created <= 2)
    }
}

impl State {
    /// Writes the Lease, which changes its resourceVersion.
    fn write_lock(&mut self, holder: Option<usize>) {
        self.real.holder = holder;
        for controller in &mut self.controllers {
            controller.lock_changed = true;
        }
    }
}

const TWO_ALIVE: &str = "at most one execution is alive on the target";
const TWICE: &str = "no request runs twice";
const FALSELY_DELETED: &str = "no existing execution is declared deleted";

fn check(guards: Guards, faults: u8, until: HasDiscoveries) -> impl Checker<Protocol> {
    let protocol = Protocol { guards, faults };
    protocol
        .checker()
        .threads(2)
        .finish_when(until)
        .spawn_bfs()
        .join()
}

/// BR-WE-009: up to two faults in any order, without assumptions about time.
#[rstest]
fn protocol_with_faults_has_no_violation(#[values(1, 2)] faults: u8) {
    let checked = check(ALL, faults, HasDiscoveries::AnyFailures);
    checked.assert_properties();
    let states = checked.unique_state_count();
    println!("{faults} faults: {states} states");
    assert!(states > 1_000_000, "{states}");
}

/// Asserts that the checker finds `violation` when `without` disables a guard.
fn assert_violated(violation: &'static str, without: impl FnOnce(&mut Guards)) {
    let mut guards = ALL;
    without(&mut guards);
    let checked = check(guards, 2, HasDiscoveries::AnyOf([violation].into()));
    let found = checked.discoveries();
    assert!(found.contains_key(violation), "only {:?}", found.keys());
}

/// BR-WE-009
#[test]
fn protocol_without_lease_versions_has_two_alive() {
    assert_violated(TWO_ALIVE, |guards| guards.lease_versions = false);
}

/// BR-WE-009
#[test]
fn protocol_without_status_versions_runs_twice() {
    assert_violated(TWICE, |guards| guards.status_versions = false);
}

/// BR-WE-009: a create that is committed late.
#[test]
fn protocol_without_suspended_creates_runs_twice() {
    assert_violated(TWICE, |guards| guards.creates_suspended = false);
}

/// BR-WE-009
#[test]
fn protocol_without_suspended_creates_has_two_alive() {
    assert_violated(TWO_ALIVE, |guards| guards.creates_suspended = false);
}

/// BR-WE-009
#[test]
fn protocol_with_start_before_store_runs_twice() {
    assert_violated(TWICE, |guards| guards.stores_before_start = false);
}

/// BR-WE-009
#[test]
fn protocol_with_start_by_name_runs_twice() {
    assert_violated(TWICE, |guards| guards.start_names_uid = false);
}

/// BR-WE-003
#[test]
fn protocol_without_uncached_read_declares_existing_execution_deleted() {
    assert_violated(FALSELY_DELETED, |guards| guards.reads_execution = false);
}

/// BR-WE-009
#[test]
fn protocol_without_read_of_remains_has_two_alive() {
    assert_violated(TWO_ALIVE, |guards| guards.reads_remains = false);
}

/// BR-WE-009
#[test]
fn protocol_with_unconditional_sweep_has_two_alive() {
    assert_violated(TWO_ALIVE, |guards| guards.sweep_reads_remains = false);
}
