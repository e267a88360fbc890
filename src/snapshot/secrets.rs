//! Variables that look like secrets, by which an image is told apart from what it should not hold.

/// Words of a name that hardly ever mean anything else, wherever they stand. What is at the end of a
/// name says what it is, so most of what tells a secret counts only there ([`LAST`]).
const WORDS: [&str; 8] =
    ["APIKEY", "CREDENTIAL", "CREDENTIALS", "PASSPHRASE", "PASSWD", "SECRET", "SECRETS", "WEBHOOK"];
/// Words that do so unless the next one says that it is about a file or a number ([`ABOUT`]).
const MOSTLY: [&str; 12] = [
    "AUTH",
    "AUTHORIZATION",
    "BEARER",
    "COOKIE",
    "DSN",
    "JWT",
    "PASSWORD",
    "PAT",
    "PWD",
    "TOKEN",
    "TOKENS",
    "COOKIES",
];
/// What the last words are that make a name one of a secret's.
const LAST: [&str; 5] = ["KEY", "KEYS", "KEYDATA", "PASS", "SK"];
/// What a name ends in that is written in one word (`PGPASSWORD`).
const ENDINGS: [&str; 11] = [
    "APIKEY",
    "ACCESSKEY",
    "CREDENTIALS",
    "JWT",
    "PASSPHRASE",
    "PASSWD",
    "PASSWORD",
    "PRIVATEKEY",
    "SECRET",
    "SECRETKEY",
    "TOKEN",
];
/// Two words that tell a secret together, wherever they stand.
const PAIRS: [[&str; 2]; 5] = [
    ["ACCESS", "KEY"],
    ["API", "KEY"],
    ["CONNECTION", "STRING"],
    ["PRIVATE", "KEY"],
    ["SECRET", "KEY"],
];
/// Words after which a name is that of a place or a property of the secret.
const ABOUT: [&str; 16] = [
    "COUNT", "DIR", "FILE", "HOME", "HOST", "LENGTH", "LIMIT", "METHOD", "NAME", "PATH", "SIZE",
    "SOCK", "SOCKET", "STORE", "TTL", "TYPE",
];
/// The working directory, and the one before it.
const PLAIN: [&str; 2] = ["PWD", "OLDPWD"];
/// What a value begins with that gives access (RFC 7617, RFC 6750, RFC 7468).
const BEGINNINGS: [&str; 2] = ["basic ", "bearer "];
/// What stands before a secret in a list of settings.
const SETTINGS: [&str; 6] =
    ["accountkey=", "password=", "passwd=", "pwd=", "sharedaccesskey=", "sharedaccesssignature="];

/// Whether a variable of this name holds a secret, as far as a name can tell.
#[must_use]
pub fn is_secret_name(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name);
    let upper = name.to_ascii_uppercase();
    if PLAIN.contains(&upper.as_str()) {
        return false;
    }
    // As it is written with underscores, and as it would be written with them.
    let plain = words(&upper);
    let split = words(&apart(&name));
    is_secret_in_words(&plain) || is_secret_in_words(&split)
}

fn is_secret_in_words(words: &[String]) -> bool {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let about = |place: usize| words[place + 1..].iter().any(|word| ABOUT.contains(word));
    let mut named = words.iter().enumerate();
    words.iter().any(|word| WORDS.contains(word))
        || words.windows(2).any(|pair| PAIRS.iter().any(|known| known == pair))
        || named.any(|(place, word)| MOSTLY.contains(word) && !about(place))
        || words.last().is_some_and(|last| {
            LAST.contains(last) || ENDINGS.iter().any(|ending| last.ends_with(ending))
        })
        || words.iter().any(|word| {
            word.len() > "PASSWORD".len()
                && (word.ends_with("PASSWORD") || word.ends_with("PASSWD"))
        })
}

/// The words of a name in capitals, without the numbers that they end in.
fn words(name: &str) -> Vec<String> {
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric());
    let words = words.map(|word| word.trim_end_matches(|letter: char| letter.is_ascii_digit()));
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// In capitals, with the words of `camelCase` set apart.
fn apart(name: &str) -> String {
    let mut apart = String::new();
    let mut before = None;
    for letter in name.chars() {
        if letter.is_ascii_uppercase()
            && before.is_some_and(|before: char| before.is_ascii_lowercase())
        {
            apart.push('_');
        }
        apart.push(letter.to_ascii_uppercase());
        before = Some(letter);
    }
    apart
}

/// Whether a variable holds a secret: by its name, or by what its value looks like.
#[must_use]
pub(super) fn is_secret(name: &[u8], value: &[u8]) -> bool {
    !value.is_empty() && (is_secret_name(name) || is_secret_value(&String::from_utf8_lossy(value)))
}

fn is_secret_value(value: &str) -> bool {
    let lower = value.to_ascii_lowercase();
    let sets = |setting: &&str| {
        lower.match_indices(*setting).any(|(at, _)| lower.len() > at + setting.len())
    };
    BEGINNINGS.iter().any(|beginning| lower.starts_with(beginning))
        || value.contains("-----BEGIN")
        || SETTINGS.iter().any(sets)
        || is_token(value)
        || value.split("://").skip(1).any(has_password)
}

/// A JSON Web Token: three parts in base64url, the first of which is an object (RFC 7519).
fn is_token(value: &str) -> bool {
    let parts: Vec<&str> = value.trim().split('.').collect();
    let encodes = |part: &&str| {
        part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'='))
    };
    parts.len() >= 3 && parts[0].starts_with("eyJ") && parts.iter().all(encodes)
}

/// Whether what follows `scheme:` and two slashes has a password in it, `user:password@host` (RFC 3986,
/// 3.2.1), or a key in the place of a user: one of a person is short.
fn has_password(rest: &str) -> bool {
    const KEY: usize = 16;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let Some((user, _)) = authority.rsplit_once('@') else { return false };
    match user.split_once(':') {
        Some((user, password)) => !password.is_empty() || user.len() >= KEY,
        None => user.len() >= KEY,
    }
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
            "PGPASSWORD",
            "DBPASSWORD",
            "PASSWORD1",
            "PASSWORD",
            "GITHUBTOKEN",
            "ApiToken",
            "dbPassword",
            "clientSecret",
            "SSH_PASS",
            "DB_PASS",
            "GITHUB_PAT",
            "GH_PAT",
            "NPM_AUTH",
            "REDIS_AUTH",
            "AUTH_HEADER",
            "OPENAI_KEY",
            "ENCRYPTION_KEY",
            "SIGNING_KEY",
            "SECRETKEY",
            "KEY",
            "KEY_2",
            "STRIPE_SK",
            "JWT",
            "BEARER",
            "COOKIE",
            "SESSION_COOKIE",
            "AZURE_STORAGE_CONNECTION_STRING",
            "GPG_KEYDATA",
            "SENTRY_DSN",
            "DSN",
            "SLACK_WEBHOOK_URL",
            "HF_TOKEN",
            "TWINE_PASSWORD",
            "RESTIC_PASSPHRASE",
        ] {
            assert!(is_secret_name(name.as_bytes()), "{name}");
        }
        for name in [
            "PATH",
            "PYTHONPATH",
            "PWD",
            "OLDPWD",
            "XAUTHORITY",
            "TOKENIZERS_PARALLELISM",
            "SSH_AUTH_SOCK",
            "KEYBOARD",
            "XKB_DEFAULT_LAYOUT",
            "KEYMAP",
            "LESSKEY",
            "MONKEY",
            "TURKEY",
            "LS_COLORS",
            "DISPLAY",
            "DBUS_SESSION_BUS_ADDRESS",
            "GPG_AGENT_INFO",
            "PASSWORD_STORE_DIR",
            "KERAS_BACKEND",
            "COMPOSE_PROJECT_NAME",
            "PATTERN",
            "AUTHOR",
            "GIT_AUTHOR_NAME",
            "BYPASS",
            "COMPASS",
            "OMP_NUM_THREADS",
            "PYTHONHASHSEED",
            "HOME",
            "HF_HOME",
            "CUDA_VISIBLE_DEVICES",
            "",
        ] {
            assert!(!is_secret_name(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn values_tell_secrets() {
        for value in [
            "postgres://me:hidden@host/db?x=1",
            "https://me:p%40ss@host/simple",
            "https://0123456789abcdef0123456789abcdef@sentry.example/42",
            "Bearer abc",
            "basic dXNlcjpwYXNz",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
            "host=db user=me password=hidden",
            "jdbc:postgresql://host/db?user=me&password=hidden",
            "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=aGlkZGVu",
            "Server=db;Uid=me;Pwd=hidden;",
        ] {
            assert!(is_secret(b"ANY", value.as_bytes()), "{value}");
        }
        for plain in [
            "https://host:8080/a:b@c",
            "https://me@host",
            "https://me:@host",
            "ssh://git@host/repository",
            "a:b@c",
            "host=db password=",
            "unix:path=/run/user/1000/bus",
            "basically",
            "eyJ",
            "1.2.3",
            "",
        ] {
            assert!(!is_secret(b"INDEX", plain.as_bytes()), "{plain}");
        }
        assert!(!is_secret(b"TOKEN", b""));
    }
}
