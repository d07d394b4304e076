//! One test binary over the real daemon; each module is one side of it.

#![forbid(unsafe_code)]

mod authoring;
mod boundaries;
mod cli;
mod clients;
mod clock;
mod concurrency;
mod conformance;
mod connections;
mod console;
mod control;
mod crashes;
mod drivers;
mod faults;
mod files;
mod fixtures;
mod forwarding;
mod frameworks;
mod guide;
mod history;
mod http;
mod kv;
mod management;
mod metrics;
mod openapi;
mod programs;
mod readme;
mod reload;
mod rows;
mod sdk;
mod service;
mod store;
mod supervision;
mod values;
