//! A shader that no driver has seen yet must not fail first at a user's: every one is parsed and
//! checked here, and Rust's structures are compared with WGSL's, without a GPU.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use wgpu::naga;
use wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};

use crate::device::gpu::params::LAYOUTS;
use crate::device::gpu::pipeline::{SHADERS, source};
use crate::device::gpu::{expand, matvec, shrink};

fn folder() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders")
}

#[test]
fn every_shader_is_valid_without_any_optional_capability() {
    let mut problems = String::new();
    for (name, source) in SHADERS {
        match naga::front::wgsl::parse_str(source) {
            Err(error) => writeln!(problems, "{name}: {}", error.emit_to_string(source)).unwrap(),
            Ok(module) => {
                let checked =
                    Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module);
                if let Err(error) = checked {
                    writeln!(problems, "{name}: {}", error.emit_to_string(source)).unwrap();
                }
                if module.entry_points.is_empty() {
                    writeln!(problems, "{name}: no entry point").unwrap();
                }
            }
        }
    }
    assert!(problems.is_empty(), "{problems}");
}

#[test]
fn every_file_in_the_folder_is_a_known_shader() {
    let files_of = |prefix: &'static str| {
        let files = std::fs::read_dir(folder().join(prefix)).unwrap();
        let files = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        files.filter_map(move |name| Some(format!("{prefix}{}", name.strip_suffix(".wgsl")?)))
    };
    let mut files: Vec<_> = ["", "naive/"].into_iter().flat_map(files_of).collect();
    files.sort();
    let mut known: Vec<_> = SHADERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    known.sort();
    assert_eq!(files, known);
}

/// Arrays of a thread take no overrides, so these numbers stand in WGSL, too.
#[test]
fn shaders_have_arrays_for_the_most_that_they_are_dispatched_for() {
    for (shader, name, expected) in [
        ("matvec", "MOST", matvec::MOST_TOKENS),
        ("shrink", "MOST_ROWS", shrink::MOST_ROWS),
        ("shrink", "MOST_PAIRS", shrink::MOST_PAIRS),
        ("expand", "MOST", expand::MOST_ROWS),
    ] {
        let module = naga::front::wgsl::parse_str(source(shader)).unwrap();
        let most = module.constants.iter().find(|(_, c)| c.name.as_deref() == Some(name));
        let value = &module.global_expressions[most.unwrap().1.init];
        let naga::Expression::Literal(naga::Literal::U32(value)) = value else {
            panic!("{value:?}")
        };
        assert_eq!(*value as usize, expected, "{shader}: {name}");
    }
}

/// A number that Rust knows, too, must not have another value in WGSL by default.
#[test]
fn overrides_have_no_value_of_their_own() {
    for (name, source) in SHADERS {
        for line in source.lines().filter(|line| line.starts_with("override ")) {
            let of_another =
                |(_, value): (_, &str)| value.contains(|c: char| c.is_ascii_uppercase());
            assert!(line.split_once('=').is_none_or(of_another), "{name}: {line}");
        }
    }
}

/// The structures of the shared file: name → size and members (name, kind, offset).
#[test]
fn parameters_lie_the_same_in_rust_and_in_wgsl() {
    let source = std::fs::read_to_string(folder().join("shared/params.wgsl")).unwrap();
    let module = naga::front::wgsl::parse_str(&source).unwrap();
    let mut found = BTreeMap::new();
    for (_, kind) in module.types.iter() {
        if let (Some(name), naga::TypeInner::Struct { members, span }) = (&kind.name, &kind.inner) {
            let members: Vec<_> = members
                .iter()
                .map(|member| {
                    let naga::TypeInner::Scalar(scalar) = module.types[member.ty].inner else {
                        panic!("{name}: members are numbers of four bytes")
                    };
                    let kind = match scalar.kind {
                        naga::ScalarKind::Uint => "u32",
                        naga::ScalarKind::Sint => "i32",
                        naga::ScalarKind::Float => "f32",
                        other => panic!("{name}: {other:?}"),
                    };
                    (member.name.clone().unwrap(), kind.to_owned(), member.offset as usize)
                })
                .collect();
            found.insert(name.clone(), (*span as usize, members));
        }
    }
    let expected: BTreeMap<_, _> = LAYOUTS
        .iter()
        .map(|(name, size, members)| {
            let members = members
                .iter()
                .map(|(name, kind, at)| (name.to_string(), kind.to_string(), *at))
                .collect();
            (name.to_string(), (*size, members))
        })
        .collect();
    assert_eq!(found, expected);
}
