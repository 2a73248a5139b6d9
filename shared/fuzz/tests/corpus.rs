//! Runs each body with its corpus and with random variations of the corpus.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use rstest::rstest;
use wfe_fuzz::{BODIES, Body};

const CASES: u32 = 2_000;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let files = std::fs::read_dir(directory.join(name)).expect("a corpus");
    let read =
        |file: std::io::Result<std::fs::DirEntry>| std::fs::read(file.expect("listed").path());
    files.map(|file| read(file).expect("read")).collect()
}

#[derive(Clone, Debug)]
enum Change {
    Replace(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        (any::<Index>(), vec(any::<u8>(), 1..4)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (any::<Index>(), "[0-9a-zA-Z/:@$.\"{}-]{1,3}")
            .prop_map(|(at, text)| Change::Insert(at, text.into_bytes())),
        (any::<Index>(), 1_usize..8).prop_map(|(at, length)| Change::Remove(at, length)),
        (any::<Index>(), 1_usize..64).prop_map(|(at, length)| Change::Repeat(at, length)),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        if bytes.is_empty() {
            break;
        }
        let span = |at: &Index, length: usize| {
            let start = at.index(bytes.len());
            start..(start + length).min(bytes.len())
        };
        match change {
            Change::Replace(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Change::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Change::Remove(at, length) => drop(bytes.drain(span(at, *length))),
            Change::Repeat(at, length) => {
                let part = span(at, *length);
                let copy = bytes[part.clone()].to_vec();
                bytes.splice(part.end..part.end, copy);
            }
        }
    }
    bytes
}

/// What is found by fuzzing is added to the corpus.
#[rstest]
fn body_holds_for_variations_of_the_corpus(#[values(0, 1, 2, 3, 4, 5, 6)] number: usize) {
    let (name, body): (&str, Body) = BODIES[number];
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for bytes in &corpus {
        body(bytes);
    }
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let inputs = (proptest::sample::select(corpus), vec(change(), 1..8));
    let mut runner = TestRunner::new(config);
    runner
        .run(&inputs, |(bytes, changes)| {
            body(&changed(bytes, &changes));
            Ok(())
        })
        .expect("holds");
}
