//! When the webhook's certificate, and the authority that signs it, are made and renewed, so that the
//! API server trusts what is served at any time.
//!
//! A new authority is published beside the older one first. Certificates are signed with it when API
//! servers know it.

use jiff::{SignedDuration, Timestamp};

/// Lifetimes. The authority's is at least twice the sum of the others.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Of a certificate.
    pub certificate: SignedDuration,
    /// A certificate is renewed this long before it ends.
    pub renew_before: SignedDuration,
    /// Of an authority.
    pub authority: SignedDuration,
}

impl Lifetimes {
    /// When a new authority has been published for long enough to replace a certificate that is in use. Well
    /// before that one ends, also if it was made with shorter lifetimes.
    fn known(&self, authority: &Validity, serving: &Serving) -> Timestamp {
        let left = serving.ends.duration_since(authority.made);
        authority.made + (self.renew_before / 2).min(left / 2)
    }

    /// An authority that ends within this time is replaced: it does not outlive what it signs.
    fn authority_renew_before(&self) -> SignedDuration {
        self.certificate + self.renew_before
    }
}

/// Validity of a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    /// When it was made.
    pub made: Timestamp,
    /// When it ends.
    pub ends: Timestamp,
}

/// The certificate that the webhook serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Serving {
    /// When it ends.
    pub ends: Timestamp,
    /// The authority that signed it.
    pub signer: Signer,
}

/// The authority that signed a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signer {
    /// The authority whose key is stored.
    Current,
    /// An older authority that is still published.
    Older,
}

/// What is stored.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// The authority whose key is stored; none if there is none that can be read.
    pub authority: Option<Validity>,
    /// The serving certificate; none if there is none for the webhook's name that a published
    /// authority has signed.
    pub serving: Option<Serving>,
    /// Whether every webhook of both configurations has all published authorities.
    pub published: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Make an authority, and keep those that have not ended for verification.
    MakeAuthority,
    /// Write the authorities into the webhook configurations.
    Publish,
    /// Sign a new serving certificate.
    Sign,
    /// Nothing, until this time or a change.
    Wait(Timestamp),
}

/// Decides on the next step.
pub fn next(now: Timestamp, lifetimes: &Lifetimes, stored: &Stored) -> Step {
    let Some(authority) = stored.authority else {
        return Step::MakeAuthority;
    };
    let authority_due = authority.ends - lifetimes.authority_renew_before();
    if authority_due <= now {
        return Step::MakeAuthority;
    }
    if !stored.published {
        return Step::Publish;
    }
    let due = match stored.serving {
        None => return Step::Sign,
        Some(serving) => {
            let renewal = serving.ends - lifetimes.renew_before;
            match serving.signer {
                Signer::Current => renewal,
                Signer::Older => renewal.max(lifetimes.known(&authority, &serving)),
            }
        }
    };
    if due <= now {
        return Step::Sign;
    }
    Step::Wait(due.min(authority_due))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const LIFETIMES: Lifetimes = Lifetimes {
        certificate: SignedDuration::from_hours(100),
        renew_before: SignedDuration::from_hours(20),
        authority: SignedDuration::from_hours(1000),
    };

    fn at(hours: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours)
    }

    fn authority(made: i64) -> Validity {
        let (made, ends) = (at(made), at(made + 1000));
        Validity { made, ends }
    }

    fn serving(ends: i64, signer: Signer) -> Serving {
        let ends = at(ends);
        Serving { ends, signer }
    }

    /// BR-WE-001: the webhook always serves a certificate that the API server trusts.
    #[rstest]
    #[case::nothing_stored(0, None, None, false, Step::MakeAuthority)]
    #[case::authority_is_published_first(0, Some(authority(0)), None, false, Step::Publish)]
    #[case::then_it_signs(0, Some(authority(0)), None, true, Step::Sign)]
    #[case::valid(
        1,
        Some(authority(0)),
        Some(serving(100, Signer::Current)),
        true,
        Step::Wait(at(80))
    )]
    #[case::due(
        80,
        Some(authority(0)),
        Some(serving(100, Signer::Current)),
        true,
        Step::Sign
    )]
    #[case::configuration_was_replaced(
        1,
        Some(authority(0)),
        Some(serving(100, Signer::Current)),
        false,
        Step::Publish
    )]
    #[case::authority_would_not_outlive_a_certificate(
        880,
        Some(authority(0)),
        Some(serving(960, Signer::Current)),
        true,
        Step::MakeAuthority
    )]
    #[case::new_authority_is_not_known_yet(
        881,
        Some(authority(880)),
        Some(serving(900, Signer::Older)),
        true,
        Step::Wait(at(890))
    )]
    #[case::new_authority_signs_when_due(
        900,
        Some(authority(880)),
        Some(serving(960, Signer::Older)),
        true,
        Step::Wait(at(940))
    )]
    #[case::new_authority_is_known(
        890,
        Some(authority(880)),
        Some(serving(900, Signer::Older)),
        true,
        Step::Sign
    )]
    #[case::soon_ending_certificate_of_shorter_lifetimes(
        882,
        Some(authority(880)),
        Some(serving(884, Signer::Older)),
        true,
        Step::Sign
    )]
    #[case::ended_certificate_is_replaced_at_once(
        880,
        Some(authority(880)),
        Some(serving(879, Signer::Older)),
        true,
        Step::Sign
    )]
    fn next_for_stored_takes_the_step(
        #[case] now: i64,
        #[case] authority: Option<Validity>,
        #[case] serving: Option<Serving>,
        #[case] published: bool,
        #[case] expected: Step,
    ) {
        let stored = Stored {
            authority,
            serving,
            published,
        };
        assert_eq!(next(at(now), &LIFETIMES, &stored), expected);
    }

    /// BR-WE-001: whatever the steps in between, what is served was signed by a published authority that
    /// has not ended, and a new authority is published for a while before its certificate is served.
    #[test]
    fn next_over_three_authorities_always_serves_what_is_trusted() {
        let mut now = at(0);
        let mut authorities: Vec<Validity> = Vec::new();
        let mut served: Option<(usize, Timestamp)> = None;
        let mut published = 0;
        while authorities.len() < 4 {
            let stored = Stored {
                authority: authorities.last().copied(),
                serving: served.map(|(by, ends)| Serving {
                    ends,
                    signer: if by + 1 == authorities.len() {
                        Signer::Current
                    } else {
                        Signer::Older
                    },
                }),
                published: published == authorities.len(),
            };
            match next(now, &LIFETIMES, &stored) {
                Step::MakeAuthority => authorities.push(Validity {
                    made: now,
                    ends: now + LIFETIMES.authority,
                }),
                Step::Publish => published = authorities.len(),
                Step::Sign => {
                    let by = authorities.len() - 1;
                    let known = now.duration_since(authorities[by].made);
                    assert!(served.is_none() || known >= LIFETIMES.renew_before / 2);
                    served = Some((by, now + LIFETIMES.certificate));
                }
                Step::Wait(until) => {
                    assert!(until > now, "time passes");
                    let (by, ends) = served.expect("a certificate");
                    assert!(until < ends && ends <= authorities[by].ends);
                    now = until;
                }
            }
        }
    }
}
