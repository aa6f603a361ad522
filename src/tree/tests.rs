//! Trees made in memory: walks, plans, tours and pictures against their naive forms.

#![allow(clippy::cast_possible_truncation, reason = "small made trees")]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn memory() -> NodeSource {
    NodeSource::Memory(Arc::default())
}

fn tree_of(nodes: &[(&str, &str)]) -> AdapterTree {
    let builder = nodes.iter().fold(AdapterTree::builder(), |builder, (name, parent)| {
        builder.node(*name, *parent, memory())
    });
    builder.levels(["language", "task", "user"]).build().unwrap()
}

fn small() -> AdapterTree {
    tree_of(&[
        ("fr", ""),
        ("fr/a", "fr"),
        ("fr/a/alice", "fr/a"),
        ("fr/a/bob", "fr/a"),
        ("de", "/"),
        ("loose", "de"),
    ])
}

/// A tree whose node `i + 1` hangs under one of the nodes before it.
fn any_tree(most: usize) -> impl Strategy<Value = AdapterTree> {
    prop::collection::vec(any::<prop::sample::Index>(), 1..most).prop_map(|parents| {
        let name = |index: usize| if index == 0 { String::new() } else { format!("n{index}") };
        let numbered = parents.iter().enumerate();
        let builder = numbered.fold(AdapterTree::builder(), |builder, (index, parent)| {
            builder.node(name(index + 1), name(parent.index(index + 1)), memory())
        });
        builder.build().unwrap()
    })
}

fn pick(tree: &AdapterTree, index: prop::sample::Index) -> NodeId {
    *index.get(&tree.nodes().collect::<Vec<_>>())
}

#[test]
fn a_node_is_found_by_its_path() {
    let tree = small();
    assert_eq!(tree.len(), 7);
    for name in ["", "/", "//"] {
        assert_eq!(tree.node(name).unwrap(), tree.root());
    }
    let alice = tree.node("fr/a/alice").unwrap();
    assert_eq!(tree.node("/fr/a/alice/").unwrap(), alice);
    assert_eq!(
        (tree.name(alice), tree.depth(alice), tree.level_name(3)),
        ("fr/a/alice", 3, Some("user"))
    );
    assert_eq!((tree.level_name(0), tree.level_name(4)), (None, None));
    assert_eq!(tree.parent(tree.root()), None);
    let names =
        |ids: Vec<NodeId>| ids.into_iter().map(|id| tree.name(id).to_owned()).collect::<Vec<_>>();
    assert_eq!(names(tree.children(tree.root())), ["de", "fr"]);
    assert_eq!(names(tree.path_from_root(alice)), ["fr", "fr/a", "fr/a/alice"]);
    assert_eq!(names(tree.leaves().collect()), ["loose", "fr/a/alice", "fr/a/bob"]);
}

#[test]
fn an_unknown_node_is_answered_with_its_neighbours() {
    let error = small().node("fr/alise").unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no node fr/alise; did you mean fr/a/alice, fr/a or fr?"
    );
}

#[test]
fn plans_print_themselves() {
    let tree = small();
    let plan = |a: &str, b: &str| {
        tree.plan(tree.node(a).unwrap(), tree.node(b).unwrap()).display(&tree).to_string()
    };
    assert_eq!(plan("fr/a/alice", "fr/a/bob"), "fr/a/alice → fr/a/bob: − fr/a/alice  + fr/a/bob");
    assert_eq!(plan("/", "fr/a"), "/ → fr/a: + fr  + fr/a");
    assert_eq!(plan("fr/a/bob", "de"), "fr/a/bob → de: − fr/a/bob  − fr/a  − fr  + de");
    assert_eq!(plan("de", "de"), "de → de: nothing to do");
    let summary = tree.plan(tree.node("de").unwrap(), tree.root()).summary(&tree);
    assert_eq!(
        serde_json::to_string(&summary).unwrap(),
        r#"{"source":"de","target":"/","subtract":["de"],"add":[]}"#
    );
}

#[test]
fn a_tree_is_drawn_as_text() {
    let tree = small();
    let note = |id| (tree.name(id) == "fr").then(|| "rank 16, 9.8 MB".to_owned());
    insta::assert_snapshot!(render::text(&tree, note), @r"
    /
    ├── de (language)
    │   └── loose (task)
    └── fr (language)  rank 16, 9.8 MB
        └── a (task)
            ├── alice (user)
            └── bob (user)
    ");
}

#[test]
fn a_tree_is_drawn_as_dot() {
    let tree = tree_of(&[("fr", ""), ("fr/x.y-z", "fr")]);
    let note = |id| (tree.depth(id) == 2).then(|| r#"say "hi""#.to_owned());
    insta::assert_snapshot!(render::dot(&tree, note), @r#"
    digraph tree {
      node [shape=box];
      "/" [label="/"];
      "fr" [label="fr"];
      "fr/x.y-z" [label="x.y-z\nsay \"hi\""];
      "/" -> "fr";
      "fr" -> "fr/x.y-z";
    }
    "#);
}

#[test]
fn a_tree_is_written_as_json() {
    let tree = tree_of(&[("fr", ""), ("fr/a", "fr")]);
    let value =
        render::json(&tree, |id| (tree.depth(id) == 1).then(|| serde_json::json!({"ranks": [4]})));
    insta::assert_snapshot!(value.to_string(), @r#"{"name":"/","depth":0,"level":null,"label":null,"adapter":null,"children":[{"name":"fr","depth":1,"level":"language","label":null,"adapter":{"ranks":[4]},"children":[{"name":"fr/a","depth":2,"level":"task","label":null,"adapter":null,"children":[]}]}]}"#);
}

#[test]
fn equal_trees_have_equal_ids_whatever_the_order_of_their_nodes() {
    let one = tree_of(&[("a", ""), ("b", "a"), ("c", "")]);
    let other = tree_of(&[("c", ""), ("b", "a"), ("a", "")]);
    for id in one.nodes() {
        assert_eq!(one.name(id), other.name(id));
    }
}

/// The cheapest walk by trying every order.
fn brute_force(
    tree: &AdapterTree,
    at: NodeId,
    left: &BTreeSet<NodeId>,
    cost: &dyn Fn(NodeId) -> u64,
) -> u64 {
    let ways = left.iter().map(|&next| {
        let rest = left.iter().copied().filter(|id| *id != next).collect();
        distance(tree, at, next, cost) + brute_force(tree, next, &rest, cost)
    });
    ways.min().unwrap_or(0)
}

fn distance(tree: &AdapterTree, a: NodeId, b: NodeId, cost: &dyn Fn(NodeId) -> u64) -> u64 {
    let plan = tree.plan(a, b);
    plan.subtract.iter().chain(&plan.add).map(|id| cost(*id)).sum()
}

proptest! {
    #[test]
    fn lowest_common_ancestor_is_the_last_shared_step_of_both_paths(
        tree in any_tree(30), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(),
    ) {
        let (a, b) = (pick(&tree, a), pick(&tree, b));
        let (left, right) = (tree.path_from_root(a), tree.path_from_root(b));
        let shared = left.iter().zip(&right).take_while(|(x, y)| x == y).map(|(x, _)| *x).last();
        prop_assert_eq!(tree.lowest_common_ancestor(a, b), shared.unwrap_or(tree.root()));
    }

    #[test]
    fn the_way_back_is_the_plan_reversed(
        tree in any_tree(30), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(),
    ) {
        let (a, b) = (pick(&tree, a), pick(&tree, b));
        prop_assert_eq!(tree.plan(a, b).reversed(), tree.plan(b, a));
        prop_assert_eq!(tree.plan(a, b).is_empty(), a == b);
    }

    #[test]
    fn any_walk_leaves_exactly_the_path_of_its_last_node_applied(
        tree in any_tree(30), walk in prop::collection::vec(any::<prop::sample::Index>(), 1..40),
    ) {
        let mut applied: Vec<NodeId> = Vec::new();
        let mut at = tree.root();
        for target in walk {
            let target = pick(&tree, target);
            let plan = tree.plan(at, target);
            for node in plan.subtract {
                prop_assert_eq!(applied.pop(), Some(node));
            }
            applied.extend(plan.add);
            prop_assert_eq!(&applied, &tree.path_from_root(target));
            at = target;
        }
    }

    #[test]
    fn children_and_parents_agree_and_parents_come_first(tree in any_tree(40)) {
        for id in tree.nodes() {
            for child in tree.children(id) {
                prop_assert_eq!(tree.parent(child), Some(id));
                prop_assert_eq!(tree.depth(child), tree.depth(id) + 1);
                prop_assert!(child > id);
            }
        }
        prop_assert_eq!(tree.nodes().map(|id| tree.children(id).len()).sum::<usize>(), tree.len() - 1);
    }

    #[test]
    fn no_walk_is_cheaper_than_the_tour(
        tree in any_tree(12), start in any::<prop::sample::Index>(),
        chosen in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        costs in prop::collection::vec(0u64..20, 12),
    ) {
        let cost = |id: NodeId| costs[id.index()];
        let (start, chosen) = (pick(&tree, start), chosen.into_iter().map(|c| pick(&tree, c)).collect::<Vec<_>>());
        let tour = tree.tour(&chosen, start, cost);
        let wanted: BTreeSet<NodeId> = chosen.into_iter().collect();
        prop_assert_eq!(tour.iter().copied().collect::<BTreeSet<_>>(), wanted.clone());
        prop_assert_eq!(tour.len(), wanted.len());
        let walk = std::iter::once(start).chain(tour);
        let stops: Vec<NodeId> = walk.collect();
        let length: u64 = stops.windows(2).map(|pair| distance(&tree, pair[0], pair[1], &cost)).sum();
        prop_assert_eq!(length, brute_force(&tree, start, &wanted, &cost));
    }
}
