//! Variables that look like secrets, by which an image is told apart from what it should not hold.

/// Words of a name that hardly ever mean anything else.
const WORDS: [&str; 11] = [
    "APIKEY",
    "CREDENTIAL",
    "CREDENTIALS",
    "PASSPHRASE",
    "PASSWD",
    "PASSWORD",
    "PWD",
    "SECRET",
    "SECRETS",
    "TOKEN",
    "TOKENS",
];
/// Two words that do so together.
const PAIRS: [[&str; 2]; 4] =
    [["ACCESS", "KEY"], ["API", "KEY"], ["PRIVATE", "KEY"], ["SECRET", "KEY"]];
/// The working directory, and the one before it.
const PLAIN: [&str; 2] = ["PWD", "OLDPWD"];

/// Whether a variable of this name holds a secret, as far as a name can tell.
#[must_use]
pub fn is_secret_name(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).to_ascii_uppercase();
    if PLAIN.contains(&name.as_str()) {
        return false;
    }
    let words: Vec<&str> = name.split(|letter: char| !letter.is_ascii_alphanumeric()).collect();
    words.iter().any(|word| WORDS.contains(word))
        || words.windows(2).any(|pair| PAIRS.iter().any(|known| known == pair))
}

/// Whether a variable holds a secret: by its name, or because it is an address with a password in it
/// (`scheme://user:password@host`, RFC 3986, 3.2.1).
#[must_use]
pub(super) fn is_secret(name: &[u8], value: &[u8]) -> bool {
    let value = String::from_utf8_lossy(value);
    let has_password = value.split("://").skip(1).any(|rest| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let user = authority.rsplit_once('@').map(|(user, _)| user);
        user.and_then(|user| user.split_once(':')).is_some_and(|(_, password)| !password.is_empty())
    });
    has_password || (!value.is_empty() && is_secret_name(name))
}

#[cfg(test)]
mod tests {
    use super::{is_secret, is_secret_name};

    #[test]
    fn names_tell_secrets() {
        for name in [
            "AWS_SECRET_ACCESS_KEY",
            "AWS_ACCESS_KEY_ID",
            "GITHUB_TOKEN",
            "PGPASSWORD_TOKEN",
            "DB_PASSWORD",
            "openai_api_key",
            "MYSQL_PWD",
            "SSH_PRIVATE_KEY",
            "GOOGLE_APPLICATION_CREDENTIALS",
        ] {
            assert!(is_secret_name(name.as_bytes()), "{name}");
        }
        for name in [
            "PATH",
            "PWD",
            "OLDPWD",
            "TOKENIZERS_PARALLELISM",
            "SSH_AUTH_SOCK",
            "KEYBOARD",
            "LESSKEY",
            "OMP_NUM_THREADS",
            "PYTHONHASHSEED",
        ] {
            assert!(!is_secret_name(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn addresses_with_passwords_are_secrets() {
        assert!(is_secret(b"DATABASE_URL", b"postgres://me:hidden@host/db?x=1"));
        assert!(is_secret(b"PIP_INDEX_URL", b"https://me:p%40ss@host/simple"));
        for plain in ["https://host:8080/a:b@c", "https://me@host", "https://me:@host", "a:b@c", ""]
        {
            assert!(!is_secret(b"INDEX", plain.as_bytes()), "{plain}");
        }
        assert!(!is_secret(b"TOKEN", b""));
    }
}
