//! The environment variables that the imports have read: what they found is part of the image.
//!
//! In the section of the checks, numbers little-endian, names behind their length (u64):
//!
//! ```text
//!   variables: their number u32, for each its name, the number of its values u32, the values u64 each:
//!     xxh3 of what it may be, 0 for absent
//!   families: their number u32, the beginning of the names of each
//!   numbers of threads: their number u32, the name of each
//! ```

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::xxh3_64;

use super::bytes::{Cursor, put_bytes};

/// What each variable may be. Values are known by their hashes: a variable may hold a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    known: BTreeMap<Vec<u8>, BTreeSet<u64>>,
    /// How names begin of which the imports have read all that there are.
    families: BTreeSet<Vec<u8>>,
    /// Numbers of threads, to which a restored process sets its pools.
    settable: BTreeSet<Vec<u8>>,
}

const ABSENT: u64 = 0;

fn hash(value: Option<&[u8]>) -> u64 {
    value.map_or(ABSENT, |value| xxh3_64(value).max(ABSENT + 1))
}

impl Variables {
    /// A variable of that name may have this value, or be absent.
    pub fn allow(&mut self, name: Vec<u8>, value: Option<&[u8]>) {
        self.known.entry(name).or_default().insert(hash(value));
    }

    /// A variable whose name begins so may only be what has been allowed for it.
    pub fn add_family(&mut self, beginning: Vec<u8>) {
        self.families.insert(beginning);
    }

    /// A variable of that name is a number that a restored process can heed.
    pub fn add_settable(&mut self, name: Vec<u8>) {
        self.settable.insert(name);
    }

    /// The names of the variables.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.known.keys().map(Vec::as_slice)
    }

    /// A variable that the imports would find otherwise in this environment; the first of a name counts,
    /// as for getenv(3). What the process can heed is passed over for a `child`.
    pub(super) fn differing<'a>(
        &'a self,
        environment: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        child: bool,
    ) -> Option<&'a [u8]> {
        let mut there = BTreeSet::new();
        for (name, value) in environment {
            let allowed = self.known.get(name);
            if allowed.is_none() && !self.is_in_family(name) || !there.insert(name) {
                continue;
            }
            let heeded =
                || child && self.settable.contains(name) && value.iter().all(u8::is_ascii_digit);
            if !allowed.is_some_and(|values| values.contains(&hash(Some(value)))) && !heeded() {
                return Some(name);
            }
        }
        let missing = |(name, values): &(&'a Vec<u8>, &BTreeSet<u64>)| {
            let heeded = child && self.settable.contains(*name);
            !values.contains(&ABSENT) && !there.contains(name.as_slice()) && !heeded
        };
        self.known.iter().find(missing).map(|(name, _)| name.as_slice())
    }

    fn is_in_family(&self, name: &[u8]) -> bool {
        self.families.iter().any(|beginning| name.starts_with(beginning))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend((self.known.len() as u32).to_le_bytes());
        for (name, values) in &self.known {
            put_bytes(out, name);
            out.extend((values.len() as u32).to_le_bytes());
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        out.extend((self.families.len() as u32).to_le_bytes());
        self.families.iter().for_each(|beginning| put_bytes(out, beginning));
        out.extend((self.settable.len() as u32).to_le_bytes());
        self.settable.iter().for_each(|name| put_bytes(out, name));
    }

    /// `None` unless it is whole, and sorted as it was written.
    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Option<Self> {
        let mut this = Self::default();
        for _ in 0..cursor.u32()? {
            let name = cursor.bytes()?.to_vec();
            let mut values = BTreeSet::new();
            for _ in 0..cursor.u32()? {
                let value = cursor.u64()?;
                values.last().is_none_or(|last| *last < value).then_some(())?;
                values.insert(value);
            }
            this.known.last_key_value().is_none_or(|(last, _)| *last < name).then_some(())?;
            this.known.insert(name, values);
        }
        this.families = names(cursor)?;
        this.settable = names(cursor)?;
        Some(this)
    }
}

fn names(cursor: &mut Cursor<'_>) -> Option<BTreeSet<Vec<u8>>> {
    let mut names = BTreeSet::new();
    for _ in 0..cursor.u32()? {
        let name = cursor.bytes()?.to_vec();
        names.last().is_none_or(|last| *last < name).then_some(())?;
        names.insert(name);
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differing(environment: &[(&str, &str)]) -> Option<String> {
        differing_for(environment, false)
    }

    fn differing_for(environment: &[(&str, &str)], child: bool) -> Option<String> {
        let mut variables = Variables::default();
        variables.allow(b"UNSET".to_vec(), None);
        variables.allow(b"ONE".to_vec(), Some(b"1"));
        variables.allow(b"EITHER".to_vec(), Some(b"a"));
        variables.allow(b"EITHER".to_vec(), Some(b""));
        variables.allow(b"EITHER".to_vec(), None);
        variables.allow(b"MANY_A".to_vec(), Some(b"1"));
        variables.add_family(b"MANY_".to_vec());
        variables.add_settable(b"ONE".to_vec());
        let environment =
            environment.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let found = variables.differing(environment, child).map(<[u8]>::to_vec);
        found.map(|name| String::from_utf8(name).unwrap())
    }

    #[test]
    fn what_was_read_must_be_as_it_was() {
        let right = [("ONE", "1"), ("MANY_A", "1")];
        assert_eq!(differing(&right), None);
        let with = |more: &[(&'static str, &'static str)]| differing(&[more, &right].concat());
        assert_eq!(with(&[("OTHER", "x"), ("EITHER", "a"), ("ONE_MORE", "")]), None);
        assert_eq!(with(&[("EITHER", "")]), None);
        assert_eq!(with(&[("EITHER", "b")]).as_deref(), Some("EITHER"));
        assert_eq!(with(&[("UNSET", "")]).as_deref(), Some("UNSET"));
        assert_eq!(with(&[("ONE", "2")]).as_deref(), Some("ONE"));
        assert_eq!(with(&[("MANY_B", "1")]).as_deref(), Some("MANY_B"));
        assert_eq!(differing(&[("MANY_A", "1")]).as_deref(), Some("ONE"));
        // A child heeds a number.
        assert_eq!(differing_for(&[("MANY_A", "1"), ("ONE", "2")], true), None);
        assert_eq!(differing_for(&[("MANY_A", "1")], true), None);
        let list = [("MANY_A", "1"), ("ONE", "2,1")];
        assert_eq!(differing_for(&list, true).as_deref(), Some("ONE"));
        // A second one of the same name is not looked at.
        assert_eq!(differing(&[&right[..], &[("ONE", "2")]].concat()), None);
    }
}
