//! `DATABASE_URL`: a connection string as libpq takes it, a URL or `key=value` text (PostgreSQL's documentation, section
//! 34.1.1).
//!
//! It is read here and given to libpq as well-formed text, since libpq's errors quote what they cannot read, password
//! included.

use std::fmt::{self, Display};

use percent_encoding::percent_decode_str;

use super::value::escapes_are_whole;

const SCHEMES: [&str; 2] = ["postgresql://", "postgres://"];

/// The parameters of a connection to PostgreSQL, each once.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Conninfo(Vec<(String, String)>);

impl Conninfo {
    /// Reads `text`.
    ///
    /// # Errors
    /// What it must be, or what is wrong with it. Never quotes it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)) {
            Some(rest) => Self::of_url(rest),
            None => Self::of_pairs(text),
        }
    }

    /// The value of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Sets `name`, in place of a former value.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value.to_owned()));
    }

    /// Sets `name` if it has no value.
    pub fn set_default(&mut self, name: &str, value: &str) {
        if self.get(name).is_none() {
            self.set(name, value);
        }
    }

    /// Reads a URL without its scheme: `[user[:password]@][host[:port],...][/database][?name=value&...]`.
    fn of_url(rest: &str) -> Result<Self, &'static str> {
        let mut conninfo = Self::default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        let (hosts, ports) = hosts_and_ports(hosts)?;
        let parts = [
            ("user", user),
            ("password", password),
            ("host", &hosts),
            ("port", &ports),
            ("dbname", database),
        ];
        for (name, value) in parts {
            if !value.is_empty() {
                conninfo.set(name, &decode(value)?);
            }
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or("holds a parameter without =")?;
            match (decode(name)?.as_str(), decode(value)?.as_str()) {
                // As JDBC has it, which libpq takes too.
                ("ssl", "true") => conninfo.set("sslmode", "require"),
                (name, value) => conninfo.set(name, value),
            }
        }
        Ok(conninfo)
    }

    /// Reads `name=value name='va lue'`, where a backslash takes the next character as it is.
    fn of_pairs(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "must start with postgres:// or postgresql://, or be libpq's key=value text";
        let mut conninfo = Self::default();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (name, value) = rest.split_once('=').ok_or(EXPECTED)?;
            let name = name.trim_end();
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
                return Err(EXPECTED);
            }
            let (value, after) = value_and_rest(value.trim_start())?;
            conninfo.set(name, &value);
            rest = after.trim_start();
        }
        if conninfo.0.is_empty() { Err(EXPECTED) } else { Ok(conninfo) }
    }
}

/// The hosts and the ports of a URL, each separated by commas.
fn hosts_and_ports(list: &str) -> Result<(String, String), &'static str> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for host_and_port in list.split(',') {
        let (host, port) = match host_and_port.strip_prefix('[') {
            Some(address) => {
                let (host, after) = address.split_once(']').ok_or("holds a [ without its ]")?;
                (host, if after.is_empty() { "" } else { after.strip_prefix(':').ok_or(PORT)? })
            }
            None => host_and_port.split_once(':').unwrap_or((host_and_port, "")),
        };
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(PORT);
        }
        hosts.push(host);
        ports.push(port);
    }
    let joined = |parts: Vec<&str>| {
        if parts.iter().all(|part| part.is_empty()) { String::new() } else { parts.join(",") }
    };
    Ok((joined(hosts), joined(ports)))
}

const PORT: &str = "holds a host whose port is no number; in a password, write : @ / ? as %3A %40 %2F %3F";

fn decode(text: &str) -> Result<String, &'static str> {
    if !escapes_are_whole(text) {
        return Err("holds a % that begins no escape; write %25 for the character itself");
    }
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(String::from).map_err(|_| "holds escapes that are no UTF-8")
}

/// The value at the beginning of `text`, and what follows it.
fn value_and_rest(text: &str) -> Result<(String, &str), &'static str> {
    let quoted = text.strip_prefix('\'');
    let mut value = String::new();
    let body = quoted.unwrap_or(text);
    let mut characters = body.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted.is_some() => return Ok((value, &body[at + 1..])),
            c if c.is_whitespace() && quoted.is_none() => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    if quoted.is_some() { Err("holds a ' without its end") } else { Ok((value, "")) }
}

/// As `key=value` text.
impl Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, value)) in self.0.iter().enumerate() {
            let space = if at == 0 { "" } else { " " };
            write!(f, "{space}{name}='{}'", value.replace('\\', r"\\").replace('\'', r"\'"))?;
        }
        Ok(())
    }
}

/// It holds a password.
impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, &'static str> {
        Conninfo::parse(text).map(|conninfo| conninfo.to_string())
    }

    #[test]
    fn every_form_of_url_that_libpq_takes_is_read() {
        for (url, text) in [
            ("postgres://", ""),
            ("postgresql://localhost", "host='localhost'"),
            (
                "postgres:///users?host=/cloudsql/a:b:c&user=u",
                "dbname='users' host='/cloudsql/a:b:c' user='u'",
            ),
            ("postgres://u:p@%2Fvar%2Frun/users", "user='u' password='p' host='/var/run' dbname='users'"),
            ("postgres://u@a:1,b:2/users", "user='u' host='a,b' port='1,2' dbname='users'"),
            ("postgres://a,b:2,c", "host='a,b,c' port=',2,'"),
            (
                "postgres://[::1]:5433,[2001:db8::1]/users",
                "host='::1,2001:db8::1' port='5433,' dbname='users'",
            ),
            ("postgres://:5433/users", "port='5433' dbname='users'"),
            ("postgres://u:a%20b%27%5C%40@h", r"user='u' password='a b\'\\@' host='h'"),
            (
                "postgres://u:p@h/d?password=q&ssl=true",
                "user='u' host='h' dbname='d' password='q' sslmode='require'",
            ),
            ("postgres://h/d?options=-c%20geqo%3Doff&", "host='h' dbname='d' options='-c geqo=off'"),
        ] {
            assert_eq!(read(url).as_deref(), Ok(text), "{url}");
        }
    }

    #[test]
    fn key_and_value_text_is_read() {
        for (pairs, text) in [
            ("host=h dbname=d", "host='h' dbname='d'"),
            ("  host = h   port=1 ", "host='h' port='1'"),
            (r"password='a b\'\\' user=u", r"password='a b\'\\' user='u'"),
            (r"password=a\ b host=''", "password='a b' host=''"),
            ("host=a host=b", "host='b'"),
        ] {
            assert_eq!(read(pairs).as_deref(), Ok(text), "{pairs}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_quoting_it() {
        for wrong in [
            "",
            "hunter2",
            "mysql://u:hunter2@h/d",
            "postgres:hunter2",
            "host=h hunter2",
            "password='hunter2",
            "hunter2 host=h",
            "postgres://u:hunter2:1@h:x",
            "postgres://u:hunter2/d",
            "postgres://u:hunter2?@h",
            "postgres://u:hun%ter2@h",
            "postgres://u:hunter2%00@h",
            "postgres://u:hunter2%ff@h",
            "postgres://[::1:hunter2",
            "postgres://[::1]hunter2",
            "postgres://h/d?hunter2",
        ] {
            let mistake = read(wrong).expect_err(wrong);
            assert!(!mistake.contains("hunter2"), "{mistake}");
        }
    }
}
