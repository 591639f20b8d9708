//! The `quorate` binary; what it does is in the library beside it.
#![forbid(unsafe_code)]

use clap::Parser;
use quorate_server::cli::{Cli, Command, LogFormat};
use quorate_server::config::Config;
use quorate_server::{
    bench, checkpoint, cluster, doctor, log_command, members, recover, replay, serve, status,
    transfer,
};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", explain(&error));
            ExitCode::from(2)
        }
    }
}

/// An error and its causes; without those that the text before them quotes already.
fn explain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let separator = if text.is_empty() { "" } else { ": " };
            text.push_str(separator);
            text.push_str(&cause);
        }
    }
    text
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    start_logging(cli)?;
    match &cli.command {
        Command::Cluster(args) => cluster::run(args, &cli.log),
        Command::Serve(args) => {
            serve::serve(&Config::read(&args.config)?, args.stop_with_stdin)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Status(args) => status::run(args),
        Command::Member(command) => members::run(command),
        Command::Checkpoint(args) => checkpoint::run(args),
        Command::Log(command) => log_command::run(command),
        Command::Recover(args) => recover::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Transfer(args) => transfer::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Doctor(args) => doctor::run(args),
    }
}

fn start_logging(cli: &Cli) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&cli.log)
        .map_err(|error| anyhow::anyhow!("--log {}: {error}", cli.log))?;
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match cli.log_format {
        LogFormat::Text => logs.with_target(false).with_ansi(false).init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}
