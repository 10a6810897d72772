//! Name of this machine.

/// Name of this machine with only characters that are safe in file names; `localhost` if unknown.
pub(crate) fn host_name() -> String {
    let read =
        std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::fs::read_to_string("/etc/hostname"));
    let name = read.ok().or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '-' };
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.chars().take(64).map(plain).collect(),
    }
}
