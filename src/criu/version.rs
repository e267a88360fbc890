//! Versions of CRIU, as far as they decide what it can do.

use std::fmt;

use rust_criu::rust_criu_protobuf::rpc::Criu_version;

/// A version of CRIU; they are ordered.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number, 0 where there is none.
    pub sublevel: u32,
}

impl Version {
    /// The oldest one that works with kernels since 6.13, whose vvar mapping has two parts, and that
    /// takes the directory of the image by its name.
    pub const FLOOR: Self = Self { major: 4, minor: 1, sublevel: 0 };
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)?;
        if self.sublevel > 0 { write!(formatter, ".{}", self.sublevel) } else { Ok(()) }
    }
}

impl From<&Criu_version> for Version {
    fn from(version: &Criu_version) -> Self {
        let number = |number: i32| u32::try_from(number).unwrap_or(0);
        Self {
            major: number(version.major_number()),
            minor: number(version.minor_number()),
            sublevel: number(version.sublevel()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rust_criu::rust_criu_protobuf::rpc::Criu_version;

    use super::Version;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let version = |major, minor, sublevel| Version { major, minor, sublevel };
        assert!(version(3, 17, 1) < Version::FLOOR);
        assert!(version(4, 0, 9) < Version::FLOOR);
        assert!(version(4, 1, 0) >= Version::FLOOR);
        assert!(version(4, 1, 1) >= Version::FLOOR);
        assert!(version(10, 0, 0) >= Version::FLOOR);
    }

    #[test]
    fn the_answer_of_criu_is_a_version() {
        let mut answer = Criu_version::new();
        answer.set_major_number(4);
        answer.set_minor_number(1);
        assert_eq!(Version::from(&answer).to_string(), "4.1");
        answer.set_sublevel(1);
        assert_eq!(Version::from(&answer).to_string(), "4.1.1");
        answer.set_sublevel(-1);
        assert_eq!(Version::from(&answer).to_string(), "4.1");
    }
}
