//! The requests of one run, from pairs of options or from a file.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use pleach::Request;
use pleach::runtime::Nodes;
use serde_json::Value;

use super::{Generate, lines};
use crate::model::{Model, read_input};

/// A request and what its answer is known by.
pub(super) struct Asked {
    /// A text or a whole number.
    pub(super) id: Value,
    pub(super) request: Request,
    /// Where it is written, if in a file.
    pub(super) whence: Option<String>,
}

impl Asked {
    /// The id for people.
    pub(super) fn name(&self) -> String {
        self.id.as_str().map_or_else(|| self.id.to_string(), str::to_owned)
    }
}

/// All of them, in order.
pub(super) struct Requests(pub(super) Vec<Asked>);

impl Requests {
    /// Prompts and nodes of the options, the first with the first.
    pub(super) fn from_pairs(prompts: Vec<String>, command: &Generate) -> anyhow::Result<Self> {
        let (count, mut nodes) = (prompts.len().max(command.nodes.len()), command.nodes.clone());
        let mut prompts = prompts;
        if nodes.is_empty() {
            nodes.push("/".to_owned());
        }
        for list in [&mut prompts, &mut nodes] {
            if let [only] = &list[..] {
                *list = vec![only.clone(); count];
            }
        }
        if prompts.len() != nodes.len() {
            bail!(
                "there are {} prompts and {} nodes; give as many of both, or one of either",
                prompts.len(),
                nodes.len()
            );
        }
        let (merge, deadline) = (command.serving.merge(), command.serving.deadline());
        let asked = prompts.into_iter().zip(nodes).zip(1u64..).map(|((prompt, node), number)| {
            let prompt = command.options.prompt(prompt);
            let options = command.options.generate_options();
            let request = Request { merge, deadline, options, ..Request::new(node, prompt) };
            Asked { id: number.into(), request, whence: None }
        });
        Ok(Self(asked.collect()))
    }

    /// The lines of a file.
    pub(super) fn from_lines(path: &Path, command: &Generate) -> anyhow::Result<Self> {
        ensure!(
            command.nodes.len() < 2,
            "there are {} nodes beside --requests; give one for the lines without a node, or none",
            command.nodes.len()
        );
        lines::read(path, &read_input(path)?, command).map(Self)
    }

    /// Checks all that can be checked without the weights: ids, nodes, how tokens are chosen. Nodes
    /// get their names as the tree has them.
    pub(super) fn check(&mut self, nodes: &Nodes, model: &Model) -> anyhow::Result<()> {
        let mut first: HashMap<String, usize> = HashMap::new();
        for (k, asked) in self.0.iter().enumerate() {
            if let Some(before) = first.insert(asked.id.to_string(), k) {
                let before = self.0[before].whence.as_deref().unwrap_or_default();
                let whence = asked.whence.as_deref().unwrap_or_default();
                bail!(
                    "{whence}: the id {} is there before, at {before}; make ids differ",
                    asked.id
                );
            }
        }
        for Asked { request, whence, .. } in &mut self.0 {
            let checked = checked(request, nodes, model);
            match whence {
                Some(whence) => checked.with_context(|| whence.clone())?,
                None => checked?,
            }
        }
        Ok(())
    }
}

fn checked(request: &mut Request, nodes: &Nodes, model: &Model) -> anyhow::Result<()> {
    request.node = model.check(nodes, &request.node)?;
    Ok(request.options.check()?)
}
