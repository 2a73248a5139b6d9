//! The lock's protocol as a model: two requests for one target, two controllers that both think they
//! lead, one of them with caches that are behind, each kind by itself; crashes between any two
//! requests, requests that arrive late.
//!
//! The checker walks every order of events within the bounds. Each guard of the real thing can be
//! taken out: then it must find what the guard is there for.

#![expect(
    clippy::struct_excessive_bools,
    reason = "each guard is one, each fact is one"
)]

use stateright::{Checker, HasDiscoveries, Model, Property};

const REQUESTS: usize = 2;
const CONTROLLERS: usize = 2;

/// What the protocol does to be safe.
#[derive(Clone, Copy, Debug)]
struct Guards {
    /// The Lease is written with the version it was seen at.
    versions: bool,
    /// The request is read, uncached, before its execution is made.
    still_wanted: bool,
    /// What the lock has on record is not made again.
    record: bool,
    /// The execution's name comes from the request, so that a second create finds the first.
    one_name: bool,
    /// That an execution is gone is asked, uncached.
    asks_for_execution: bool,
    /// What was read is forgotten when the request has changed since.
    answers_are_of_a_version: bool,
    /// Before the lock is freed it is asked, uncached, what is left.
    asks_what_remains: bool,
    /// The lock of a request that never had an execution is freed only when no create can be on its
    /// way any more, nor come from a pass that began before the end was stored.
    waits_for_creates: bool,
    /// A lock whose holder has vanished is freed only when nothing is left of it.
    sweep_looks: bool,
    /// Between the last look at a request and its create passes less time than an execution takes to
    /// be cancelled, or is kept after its end. The one assumption about time: it takes a second
    /// leader that is frozen in that very moment to break it.
    prompt_creates: bool,
}

const ALL: Guards = Guards {
    versions: true,
    still_wanted: true,
    record: true,
    one_name: true,
    asks_for_execution: true,
    answers_are_of_a_version: true,
    asks_what_remains: true,
    waits_for_creates: true,
    sweep_looks: true,
    prompt_creates: true,
};

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Phase {
    Pending,
    Running,
    Ended,
    /// Its finalizer was taken off by force.
    Vanished,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Job {
    None,
    Active,
    Ended,
}

#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
struct Lease {
    holder: Option<usize>,
    /// The record of the last execution.
    last: Option<usize>,
    version: u8,
}

/// What the API server has; or what a cache believes it has.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Objects {
    phases: [Phase; REQUESTS],
    cancelled: [bool; REQUESTS],
    /// Whether it is stored that it had an execution.
    executed: [bool; REQUESTS],
    lease: Lease,
    jobs: [Job; REQUESTS],
    pods: [bool; REQUESTS],
}

/// What a pass of a controller remembers between two requests.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Pass {
    request: usize,
    phase: Phase,
    taken: bool,
    wanted: bool,
    /// What the uncached read of the execution said.
    read: Option<Job>,
    /// Whether something was left, by an uncached look.
    remains: Option<bool>,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Controller {
    cache: Objects,
    pass: Option<Pass>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct State {
    real: Objects,
    controllers: [Controller; CONTROLLERS],
    /// How many executions were ever made.
    made: [u8; REQUESTS],
    /// Creates whose sender has died.
    in_flight: [bool; REQUESTS],
    /// Somebody was told that an execution is gone which was not.
    lied: bool,
    /// How much more may go wrong.
    trouble: u8,
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
    /// The next request of a pass, or the first of a new one.
    Step(usize, usize),
    /// The watch of a kind delivers.
    Sync(usize, Kind),
    /// Killed and started again, with fresh caches.
    Crash(usize),
    /// Killed while its create is on the way.
    CrashWithCreate(usize),
    Arrive(usize),
    Sweep(usize),
    JobEnds(usize),
    PodEnds(usize),
    DeleteByHand(usize),
    Cancel(usize),
    Vanish(usize),
    Retire(usize),
}

struct Protocol {
    guards: Guards,
    trouble: u8,
}

/// One request to the API server, as decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Request {
    LastLook,
    ReadJob,
    LookWhatRemains,
    Take,
    Free,
    Create,
    Delete,
    Store(Phase),
    StoreDeleted,
}

/// The rules of `decide`, as far as they are about the lock.
fn decide(cache: &Objects, pass: &Pass, guards: Guards) -> Option<Request> {
    let own = pass.request;
    let others = |it: usize| it != own && (cache.pods[it] || cache.jobs[it] == Job::Active);
    let ours = cache.lease.holder == Some(own);
    let job = match pass.read {
        Some(read) if cache.jobs[own] == Job::None => read,
        _ => cache.jobs[own],
    };
    match cache.phases[own] {
        Phase::Vanished => None,
        Phase::Pending if job != Job::None => Some(Request::Store(Phase::Running)),
        Phase::Pending if ours && !pass.taken && pass.read.is_none() => Some(Request::ReadJob),
        Phase::Pending | Phase::Running if cache.cancelled[own] => {
            Some(Request::Store(Phase::Ended))
        }
        Phase::Pending if !ours => {
            let free = cache.lease.holder.is_none() && !(0..REQUESTS).any(others);
            free.then_some(Request::Take)
        }
        Phase::Pending if (0..REQUESTS).any(others) => None,
        Phase::Pending if guards.record && cache.lease.last == Some(own) => None,
        Phase::Pending if guards.still_wanted && !pass.wanted => Some(Request::LastLook),
        Phase::Pending => Some(Request::Create),
        Phase::Running => match (job, pass.read) {
            (Job::Ended, _) => Some(Request::Store(Phase::Ended)),
            (Job::Active, _) => None,
            (Job::None, None) if guards.asks_for_execution => Some(Request::ReadJob),
            (Job::None, _) => Some(Request::StoreDeleted),
        },
        Phase::Ended if cache.jobs[own] == Job::Active && pass.read.is_none() => {
            Some(Request::ReadJob)
        }
        Phase::Ended if cache.jobs[own] == Job::Active && pass.read == Some(Job::Active) => {
            Some(Request::Delete)
        }
        Phase::Ended if !ours || cache.pods[own] || (0..REQUESTS).any(others) => None,
        Phase::Ended if cache.jobs[own] == Job::Ended => Some(Request::Free),
        Phase::Ended => match pass.remains {
            None if guards.asks_what_remains => Some(Request::LookWhatRemains),
            Some(true) => Some(Request::Delete),
            None | Some(false) => Some(Request::Free),
        },
    }
}

impl Protocol {
    /// Carries out one step of a controller's pass; the pass, where it goes on.
    fn step(&self, state: &mut State, number: usize, request: usize) {
        let on_its_way = state.is_on_its_way(number, request);
        let executed = state.real.executed[request];
        let kept = on_its_way && self.guards.prompt_creates;
        let late = on_its_way && self.guards.waits_for_creates && !executed || kept && executed;
        let controller = &mut state.controllers[number];
        let (cache, real) = (&mut controller.cache, &mut state.real);
        let fresh = Pass {
            request,
            phase: cache.phases[request],
            taken: false,
            wanted: false,
            read: None,
            remains: None,
        };
        let mut pass = controller.pass.unwrap_or(fresh);
        if self.guards.answers_are_of_a_version && pass.phase != cache.phases[request] {
            pass = fresh;
        }
        let decided = decide(cache, &pass, self.guards);
        let write = !matches!(
            decided,
            Some(Request::LastLook | Request::ReadJob | Request::LookWhatRemains)
        );
        if write && self.guards.answers_are_of_a_version {
            (pass.read, pass.remains) = (None, None);
        }
        let lease_is_current = !self.guards.versions || cache.lease.version == real.lease.version;
        let stored = cache.phases[request] == real.phases[request];
        let goes_on = match decided {
            None => false,
            Some(Request::LastLook) => {
                pass.wanted = real.phases[request] == Phase::Pending && !real.cancelled[request];
                pass.wanted
            }
            Some(Request::ReadJob) => {
                pass.read = Some(real.jobs[request]);
                true
            }
            // By its own clock: longer after the end than any request or pass lives.
            Some(Request::LookWhatRemains | Request::Free) if late => false,
            Some(Request::LookWhatRemains) => {
                pass.remains = Some(real.pods[request] || real.jobs[request] == Job::Active);
                true
            }
            Some(Request::Take | Request::Free) if !lease_is_current => {
                cache.lease = real.lease;
                false
            }
            Some(Request::Take) => {
                real.lease = Lease {
                    holder: Some(request),
                    version: real.lease.version + 1,
                    ..real.lease
                };
                cache.lease = real.lease;
                pass.taken = true;
                true
            }
            Some(Request::Free) => {
                let last = executed.then_some(request);
                real.lease = Lease {
                    holder: None,
                    last: last.or(real.lease.last),
                    version: real.lease.version + 1,
                };
                cache.lease = real.lease;
                false
            }
            Some(Request::Create) => {
                arrive(real, &mut state.made, request, self.guards);
                // The answer has the object: it stands in for the cached one.
                cache.jobs[request] = real.jobs[request];
                true
            }
            Some(Request::Delete) if kept => false,
            Some(Request::Delete) => {
                real.jobs[request] = Job::None;
                cache.jobs[request] = Job::None;
                pass.remains = None;
                false
            }
            // Refused: the version has changed. The end of a phase is final anyway.
            Some(Request::Store(_) | Request::StoreDeleted) if !stored => false,
            Some(Request::Store(phase)) => {
                real.phases[request] = phase;
                real.executed[request] |= phase == Phase::Running;
                cache.phases[request] = phase;
                true
            }
            Some(Request::StoreDeleted) => {
                state.lied |= real.jobs[request] != Job::None;
                real.phases[request] = Phase::Ended;
                cache.phases[request] = Phase::Ended;
                true
            }
        };
        if write && self.guards.answers_are_of_a_version {
            pass.phase = cache.phases[request];
        }
        controller.pass = goes_on.then_some(pass);
    }
}

/// A create comes to the API server.
fn arrive(real: &mut Objects, made: &mut [u8; REQUESTS], request: usize, guards: Guards) {
    if guards.one_name && real.jobs[request] != Job::None {
        return;
    }
    made[request] += 1;
    real.jobs[request] = Job::Active;
    real.pods[request] = true;
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let real = Objects {
            phases: [Phase::Pending; REQUESTS],
            cancelled: [false; REQUESTS],
            executed: [false; REQUESTS],
            lease: Lease::default(),
            jobs: [Job::None; REQUESTS],
            pods: [false; REQUESTS],
        };
        let controller = Controller {
            cache: real,
            pass: None,
        };
        vec![State {
            real,
            controllers: [controller; CONTROLLERS],
            made: [0; REQUESTS],
            in_flight: [false; REQUESTS],
            lied: false,
            trouble: self.trouble,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let real = &state.real;
        let trouble = state.trouble > 0;
        for (number, controller) in state.controllers.iter().enumerate() {
            match controller.pass {
                Some(pass) => actions.push(Action::Step(number, pass.request)),
                None => actions.extend((0..REQUESTS).map(|it| Action::Step(number, it))),
            }
            let cache = &controller.cache;
            let behind = [
                (
                    Kind::Requests,
                    (cache.phases, cache.cancelled) != (real.phases, real.cancelled),
                ),
                (Kind::Lease, cache.lease != real.lease),
                (Kind::Jobs, cache.jobs != real.jobs),
                (Kind::Pods, cache.pods != real.pods),
            ];
            let behind = behind.into_iter().filter(|(_, behind)| *behind);
            actions.extend(behind.map(|(kind, _)| Action::Sync(number, kind)));
            if trouble && controller.pass.is_some() {
                actions.push(Action::Crash(number));
                actions.push(Action::CrashWithCreate(number));
            }
            actions.push(Action::Sweep(number));
        }
        for request in 0..REQUESTS {
            if state.in_flight[request] {
                actions.push(Action::Arrive(request));
            }
            match real.jobs[request] {
                Job::Active => actions.push(Action::JobEnds(request)),
                Job::Ended => actions.push(Action::Retire(request)),
                Job::None if real.pods[request] => actions.push(Action::PodEnds(request)),
                Job::None => {}
            }
            // A known limit: a delete by hand before it is stored that it was made.
            let stored = real.phases[request] != Phase::Pending;
            let asleep = state.is_on_its_way(CONTROLLERS, request);
            let stored = stored && !(self.guards.prompt_creates && asleep);
            if trouble && stored && real.jobs[request] == Job::Active {
                actions.push(Action::DeleteByHand(request));
            }
            let open = matches!(real.phases[request], Phase::Pending | Phase::Running);
            if trouble && open && !real.cancelled[request] {
                actions.push(Action::Cancel(request));
            }
            if trouble && real.phases[request] == Phase::Running {
                actions.push(Action::Vanish(request));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Step(number, request) => self.step(&mut state, number, request),
            Action::Sync(number, kind) => {
                let (cache, real) = (&mut state.controllers[number].cache, &state.real);
                match kind {
                    Kind::Requests => {
                        (cache.phases, cache.cancelled) = (real.phases, real.cancelled);
                    }
                    Kind::Lease => cache.lease = real.lease,
                    Kind::Jobs => cache.jobs = real.jobs,
                    Kind::Pods => cache.pods = real.pods,
                }
            }
            Action::Crash(number) => {
                state.trouble -= 1;
                state.controllers[number] = Controller {
                    cache: state.real,
                    pass: None,
                };
            }
            Action::CrashWithCreate(number) => {
                let Controller { cache, pass } = state.controllers[number];
                let pass = pass?;
                if decide(&cache, &pass, self.guards) != Some(Request::Create) {
                    return None;
                }
                state.trouble -= 1;
                state.in_flight[pass.request] = true;
                state.controllers[number] = Controller {
                    cache: state.real,
                    pass: None,
                };
            }
            Action::Arrive(request) => {
                state.in_flight[request] = false;
                arrive(&mut state.real, &mut state.made, request, self.guards);
            }
            Action::Sweep(number) => self.sweep(&mut state, number)?,
            Action::JobEnds(request) => {
                state.real.jobs[request] = Job::Ended;
                state.real.pods[request] = false;
            }
            Action::PodEnds(request) => state.real.pods[request] = false,
            Action::DeleteByHand(request) => {
                state.trouble -= 1;
                state.real.jobs[request] = Job::None;
            }
            Action::Cancel(request) => {
                state.trouble -= 1;
                state.real.cancelled[request] = true;
            }
            Action::Vanish(request) => {
                state.trouble -= 1;
                state.real.phases[request] = Phase::Vanished;
            }
            Action::Retire(request) => {
                let ended = state.real.phases[request] == Phase::Ended;
                let kept = self.guards.prompt_creates && state.is_on_its_way(CONTROLLERS, request);
                if !ended || kept {
                    return None;
                }
                state.real.jobs[request] = Job::None;
            }
        }
        state.controllers[0].cache = state.real;
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one is alive on the target", |_, state: &State| {
                let alive =
                    |it: &usize| state.real.pods[*it] || state.real.jobs[*it] == Job::Active;
                (0..REQUESTS).filter(alive).count() <= 1
            }),
            Property::always("nothing runs twice", |_, state: &State| {
                state.made.iter().all(|made| *made <= 1)
            }),
            Property::always(
                "nothing is called deleted that is there",
                |_, state: &State| !state.lied,
            ),
            Property::sometimes("both run, one after the other", |_, state: &State| {
                state.made == [1; REQUESTS]
                    && state.real.phases == [Phase::Ended; REQUESTS]
                    && state.real.lease.holder.is_none()
            }),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.real.lease.version <= 4 && state.made.iter().all(|made| *made <= 2)
    }
}

impl State {
    /// Whether a create for `request` may still come: from a dead controller, or from a pass of
    /// another one than `controller` that began before the end was stored.
    fn is_on_its_way(&self, controller: usize, request: usize) -> bool {
        let others = self
            .controllers
            .iter()
            .enumerate()
            .filter(|(number, _)| *number != controller);
        let mut passes = others.filter_map(|(_, it)| it.pass);
        self.in_flight[request] || passes.any(|pass| pass.request == request && pass.wanted)
    }
}

impl Protocol {
    /// Frees the lock of a holder that has vanished, and deletes what it has left.
    fn sweep(&self, state: &mut State, number: usize) -> Option<()> {
        let lease = state.controllers[number].cache.lease;
        let holder = lease.holder?;
        if state.real.phases[holder] != Phase::Vanished {
            return None;
        }
        if self.guards.waits_for_creates && state.is_on_its_way(CONTROLLERS, holder) {
            return None;
        }
        let alive = state.real.pods[holder] || state.real.jobs[holder] == Job::Active;
        if alive && self.guards.sweep_looks {
            state.real.jobs[holder] = Job::None;
            return Some(());
        }
        if lease.version != state.real.lease.version {
            return None;
        }
        state.real.lease = Lease {
            holder: None,
            version: lease.version + 1,
            ..lease
        };
        Some(())
    }
}

fn check(guards: Guards, until: HasDiscoveries) -> impl Checker<Protocol> {
    let protocol = Protocol { guards, trouble: 1 };
    protocol
        .checker()
        .threads(2)
        .finish_when(until)
        .spawn_bfs()
        .join()
}

#[test]
fn br_we_009_the_protocol_holds_with_stale_caches_crashes_and_late_requests() {
    let checked = check(ALL, HasDiscoveries::AnyFailures);
    checked.assert_properties();
    assert!(
        checked.unique_state_count() > 100_000,
        "{}",
        checked.unique_state_count()
    );
}

/// What the checker finds when a guard is taken out.
fn finds(bug: &'static str, without: impl FnOnce(&mut Guards)) {
    let mut guards = ALL;
    without(&mut guards);
    let checked = check(guards, HasDiscoveries::AnyOf([bug].into()));
    let found = checked.discoveries();
    assert!(found.contains_key(bug), "only {:?}", found.keys());
}

const TWO_ALIVE: &str = "at most one is alive on the target";
const TWICE: &str = "nothing runs twice";
const LIE: &str = "nothing is called deleted that is there";

#[test]
fn br_we_009_without_versions_two_are_alive() {
    finds(TWO_ALIVE, |guards| guards.versions = false);
}

#[test]
fn br_we_009_without_the_last_look_at_the_request_it_runs_twice() {
    finds(TWICE, |guards| guards.still_wanted = false);
}

/// The record is a second net: it holds where the lock as cached is newer than the request.
#[test]
fn br_we_009_without_look_and_record_it_runs_twice() {
    finds(TWICE, |guards| {
        (guards.still_wanted, guards.record) = (false, false);
    });
}

#[test]
fn br_we_009_without_one_name_it_runs_twice() {
    finds(TWICE, |guards| guards.one_name = false);
}

#[test]
fn br_we_003_believing_the_cache_an_execution_is_called_deleted_that_is_there() {
    finds(LIE, |guards| guards.asks_for_execution = false);
}

#[test]
fn br_we_003_believing_an_old_answer_an_execution_is_called_deleted_that_is_there() {
    finds(LIE, |guards| guards.answers_are_of_a_version = false);
}

#[test]
fn br_we_009_without_looking_what_remains_two_are_alive() {
    finds(TWO_ALIVE, |guards| guards.asks_what_remains = false);
}

#[test]
fn br_we_009_without_waiting_for_late_creates_two_are_alive() {
    finds(TWO_ALIVE, |guards| guards.waits_for_creates = false);
}

#[test]
fn br_we_009_a_sweep_that_does_not_look_lets_two_be_alive() {
    finds(TWO_ALIVE, |guards| guards.sweep_looks = false);
}

/// A known limit.
#[test]
fn br_we_009_a_second_leader_that_was_asleep_runs_it_twice() {
    finds(TWICE, |guards| guards.prompt_creates = false);
}
