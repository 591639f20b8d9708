//! The configuration file.

use quorate_server::config::Config;

/// A text is refused, or a configuration that is the same after it was written and read again.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(config) = Config::parse(text) else { return };
    let written = toml::to_string(&config).expect("what was parsed can be written");
    assert_eq!(Config::parse(&written).as_ref(), Ok(&config), "it reads as it was written");
    if config.check().is_ok() {
        // What passed the check can be used without a panic.
        let _ = (config.medium(), config.node_options(), config.member(config.replica.node));
    }
}

/// The documented example, and a minimal file.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let page = include_str!("../../docs/configuration.md");
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let minimal = "[replica]\nnode = 1\ndirectory = \"d\"\n\n[[member]]\nnode = 1\n\
                   peer = \"a:1\"\nclient = \"a:2\"\n";
    vec![example.unwrap_or_default().into(), minimal.into(), b"[timers]\nheartbeat = 3".to_vec()]
}
