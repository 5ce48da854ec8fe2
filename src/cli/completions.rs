//! `adit completions`: made from the definition of the command line, so they cannot be out of date.

use clap::{Args, Command, ValueEnum};

use super::{Exit, Output};

pub(super) const EXAMPLE: &str = "Examples:
  adit completions bash > /etc/bash_completion.d/adit
  adit completions zsh > /usr/local/share/zsh/site-functions/_adit
  adit completions fish > ~/.config/fish/completions/adit.fish";

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn execute(args: &CompletionsArgs, command: &mut Command, output: &mut Output<'_>) -> Exit {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "adit", &mut script);
    output.data(String::from_utf8_lossy(&script).trim_end())
}
