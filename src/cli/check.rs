//! `gamdok check`: the configuration as it is understood, its routes, and the devices each of them would get here.

use std::fmt::Write as _;

use clap::Args;
use serde_json::{Value, json};

use super::gpus::{Probed, probe};
use super::table::{Column, Table, wrap};
use super::trouble::{Trouble, exit};
use super::{Global, output, status};
use crate::config::{Config, Route};
use crate::devices::{DeviceKind, Reading};
use crate::root::shown;
use crate::state::Pool;

#[derive(Debug, Args)]
pub(super) struct Check {}

/// What a route would get on this host.
struct Prospect<'a> {
    route: &'a Route,
    devices: Vec<String>,
    /// Why it would get nothing.
    note: Option<String>,
}

impl Check {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let (config, mut warnings) = global.config()?;
        let probed = probe(&config)?;
        warnings.extend(probed.trouble.iter().map(|trouble| format!("devices: {trouble}")));
        let prospects: Vec<Prospect> = config.routes.iter().map(|route| prospect(route, &probed)).collect();
        let nothing = |it: &Prospect| it.note.as_ref().map(|note| format!("route `{}`: {note}", it.route.name));
        warnings.extend(prospects.iter().filter_map(nothing));
        if config.routes.is_empty() {
            warnings.push("there are no routes: everything in the inbox is held".to_owned());
        }
        if global.json {
            let routes: Result<Vec<Value>, _> = prospects.iter().map(as_json).collect();
            let answer = json!({
                "config": serde_json::to_value(&config).map_err(std::io::Error::other)?,
                "routes": routes.map_err(std::io::Error::other)?,
                "devices": probed.devices,
                "warnings": warnings,
            });
            output::json(&answer)?;
        } else {
            output::print(&render(&config, &prospects, &probed, &warnings, output::width()))?;
        }
        Ok(exit::OK)
    }
}

fn prospect<'a>(route: &'a Route, probed: &Probed) -> Prospect<'a> {
    let pool = Pool::of(route, probed.mode);
    let fits = |reading: &&Reading| match pool {
        Pool::Cpu => reading.kind == DeviceKind::Cpu,
        Pool::Gpu => {
            reading.kind.is_gpu()
                && reading.excluded.is_none()
                && route.gpu_memory.is_none_or(|wanted| reading.memory_total.is_none_or(|total| wanted <= total))
        }
    };
    let devices: Vec<String> = probed.snapshot.devices.iter().filter(fits).map(|it| it.id.to_string()).collect();
    let note = match pool {
        Pool::Gpu if devices.is_empty() => Some("no GPU here fits it: its items are held".to_owned()),
        Pool::Gpu if devices.len() < route.gpus as usize => {
            Some(format!("it needs {} GPUs and {} here fit it: its items are held", route.gpus, devices.len()))
        }
        _ => None,
    };
    Prospect { route, devices, note }
}

fn as_json(prospect: &Prospect) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(prospect.route)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("devices".to_owned(), json!(prospect.devices));
        fields.insert("note".to_owned(), json!(prospect.note));
    }
    Ok(value)
}

fn render(config: &Config, prospects: &[Prospect], probed: &Probed, warnings: &[String], width: usize) -> String {
    let mut text = String::new();
    let file = config.file.as_deref().map_or_else(|| "none: built-in defaults".to_owned(), shown);
    let _ = writeln!(text, "file   {file}\nroot   {}", shown(&config.root));
    if let Some(listen) = config.api.listen {
        let _ = writeln!(text, "api    {listen}");
    }
    if !prospects.is_empty() {
        let mut table = Table::new(&[
            Column::name("ROUTE", 8),
            Column::name("TAKES", 8),
            Column::name("DEVICES", 8),
            Column::name("COMMAND", 16),
        ]);
        for Prospect { route, devices, .. } in prospects {
            let patterns = if route.patterns.is_empty() { "*".to_owned() } else { route.patterns.join(" ") };
            let takes = if route.folder.is_empty() { patterns } else { format!("{}/ {patterns}", route.folder) };
            let gets = match devices.as_slice() {
                [] => "none".to_owned(),
                [one] if one == "cpu" => one.clone(),
                few if few.len() < route.gpus as usize => format!("none: {} of {} GPUs", few.len(), route.gpus),
                all => format!("{} of {}", route.gpus, output::count(all.len(), "GPU")),
            };
            table.row([route.name.clone(), takes, gets, route.command.join(" ")]);
        }
        let _ = write!(text, "\n{}", table.render(width));
    }
    let _ = write!(text, "\n{}", status::devices(&probed.devices, width));
    if !warnings.is_empty() {
        text.push('\n');
    }
    for warning in warnings {
        text += &wrap(&format!("warning: {warning}"), "", width);
    }
    text
}
