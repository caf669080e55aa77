//! What the gateway maps to this node, or why nothing.

use std::time::Instant;

use serde::Serialize;

use super::snapshot::seconds;
use crate::proto::gateway::Description;

/// The gateway, as far as ports are concerned.
#[derive(Debug, Clone, Serialize)]
pub struct Gateway {
    /// `off`, `asking`, `mapped` or `none`.
    pub state: &'static str,
    pub address: Option<String>,
    pub reason: Option<String>,
    pub mappings: Vec<Mapping>,
}

/// A port of it that leads here.
#[derive(Debug, Clone, Serialize)]
pub struct Mapping {
    pub protocol: &'static str,
    pub transport: &'static str,
    pub port: u16,
    pub external: String,
    /// Unknown where the gateway keeps it until it is deleted.
    pub lifetime_seconds: Option<f64>,
}

#[cfg(test)]
impl Gateway {
    /// Of a node that asks for nothing.
    pub fn none() -> Self {
        Self { state: "off", address: None, reason: None, mappings: Vec::new() }
    }
}

impl Gateway {
    /// `wanted`: it is asked for anything at all.
    pub fn of(gateway: &Description, wanted: bool, now: Instant) -> Self {
        let mappings: Vec<Mapping> = gateway
            .mappings
            .iter()
            .map(|mapping| Mapping {
                protocol: mapping.protocol.name(),
                transport: mapping.transport.name(),
                port: mapping.inside,
                external: mapping.outside.to_string(),
                lifetime_seconds: mapping.until.map(|until| seconds(until.saturating_duration_since(now))),
            })
            .collect();
        let state = match (wanted, mappings.is_empty()) {
            (false, _) => "off",
            (true, false) => "mapped",
            (true, true) if gateway.why.is_some() => "none",
            (true, true) => "asking",
        };
        let address = gateway.gateway.map(|gateway| gateway.to_string());
        Self { state, address, reason: gateway.why.as_ref().map(ToString::to_string), mappings }
    }
}
