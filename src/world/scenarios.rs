//! What the world must come through.

use std::sync::Arc;

use super::fixtures::{gib, reading, route, rules};
use super::gear::Gear;
use super::{Chance, Fate, World};
use crate::config::Route;
use crate::devices::{DeviceKind, HostMode};
use crate::plan::refusal;
use crate::units::Moment;

/// Enough to meet each pair of troubles many times, and over in seconds.
const SEEDS: u64 = 200;
const EVENTS: usize = 300;

#[test]
fn every_item_ends_once_whatever_happens() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let one = number("GAMDOK_SEED");
    let seeds = one.map_or(0..number("GAMDOK_SEEDS").unwrap_or(SEEDS), |seed| seed..seed + 1);
    let (mut ended, mut started, mut grown, mut shrunk, mut gave_way) = (0, 0, 0, 0, 0);
    for seed in seeds {
        let mut world = World::new(seed);
        for _ in 0..EVENTS {
            world.happen();
        }
        world.settle();
        for (n, fate) in &world.items {
            match fate {
                Fate::Ended(_) => ended += 1,
                Fate::TakenBack => {}
                Fate::Aside => {
                    assert!(refusal(&world.matched[n], &world.snapshot).is_some(), "item {n} is held for nothing");
                }
                fate => panic!("item {n} is still {fate:?}"),
            }
        }
        started += world.started.len() as u64;
        (grown, shrunk) = (grown + world.grown, shrunk + world.shrunk);
        gave_way += world.gave_way;
    }
    assert!(one.is_some() || (ended > SEEDS * 20 && started > ended), "{ended} ended, {started} started");
    assert!(one.is_some() || gave_way > SEEDS / 10, "{gave_way} left for another director");
    assert!(one.is_some() || (grown > SEEDS && shrunk > SEEDS / 10), "{grown} further slots, {shrunk} called back");
}

/// A calm host of equal GPUs.
fn host(gpus: u32, slots: u32, routes: Vec<Route>, seed: u64) -> World {
    let mut gear = vec![Gear::new(reading(DeviceKind::Cpu, 0, Moment::default()))];
    gear.extend((0..gpus).map(|index| Gear::new(reading(DeviceKind::Gpu, index, Moment::default()))));
    let mut rules = rules();
    rules.slots = slots;
    let routes = routes.into_iter().map(Arc::new).collect();
    let mut world = World::of(seed, Chance(seed), rules, HostMode::Gpu, gear, routes);
    world.calm_down();
    world
}

/// An endless stream of the first route's items, with one of the second among them: how many that came after it start
/// before it.
fn overtaken(mut world: World) -> usize {
    let top_up = |world: &mut World| {
        while world.state.offers().filter(|(route, _)| route.name == "small").map(|(_, line)| line.len()).sum::<usize>()
            < 9
        {
            let small = world.routes[0].clone();
            world.drop_item(small);
        }
    };
    for _ in 0..60 {
        top_up(&mut world);
        world.go_on();
    }
    assert!(world.started.len() > 10, "the stream flows");
    let large = world.routes[1].clone();
    let wanted = world.drop_item(large);
    for _ in 0..400 {
        top_up(&mut world);
        world.go_on();
        if let Some(at) = world.started.iter().position(|n| *n == wanted) {
            return world.started[..at].iter().filter(|n| **n > wanted).count();
        }
    }
    panic!("starved by {} later ones", world.started.iter().filter(|n| **n > wanted).count());
}

#[test]
fn a_stream_of_small_items_never_starves_one_that_needs_several_gpus() {
    for seed in 0..8 {
        for gpus in 2..6 {
            let (small, mut large) = (route("small"), route("large"));
            large.gpus = gpus;
            let overtaking = overtaken(host(gpus, 1, vec![small, large], seed));
            assert!(overtaking <= 2, "{overtaking} overtook it on {gpus} GPUs, seed {seed}");
        }
    }
}

#[test]
fn a_stream_of_small_items_never_starves_one_that_needs_much_memory() {
    for seed in 0..8 {
        for gpus in 1..4 {
            let (mut small, mut large) = (route("small"), route("large"));
            small.gpu_memory = Some(gib(10));
            large.gpu_memory = Some(gib(75));
            let overtaking = overtaken(host(gpus, 4, vec![small, large], seed));
            assert!(overtaking <= 120, "{overtaking} overtook it on {gpus} GPUs, seed {seed}");
        }
    }
}

/// What runs goes on; what was asked is answered, and slots that were called back leave.
fn go_on_working(world: &mut World) {
    for _ in 0..6 {
        world.advance(std::time::Duration::from_millis(5));
        world.sweep();
        world.slots_go_on();
        world.decide();
        for _ in 0..world.spool.len() {
            world.spool_answers();
        }
        world.decide();
    }
}

#[test]
fn a_line_file_fills_the_host_and_makes_room_for_what_is_as_urgent() {
    for seed in 0..8 {
        let (mut file, small) = (route("file"), route("small"));
        file.split = Some(crate::config::Split { lines: 1, compress: crate::config::Compress::None, level: 6 });
        let minor = Route { priority: -1, ..route("minor") };
        let mut world = host(4, 1, vec![file, small, minor], seed);
        let drop_one = |world: &mut World, route: usize| {
            let route = world.routes[route].clone();
            world.drop_item(route)
        };
        let file = drop_one(&mut world, 0);
        let further = |world: &World| world.state.jobs().map(|job| job.further.len()).max();
        go_on_working(&mut world);
        assert_eq!((&world.started[..], further(&world)), (&[file][..], Some(3)));
        drop_one(&mut world, 2);
        go_on_working(&mut world);
        assert_eq!((world.started.len(), further(&world)), (1, Some(3)), "what is less urgent waits");
        let small: Vec<u64> = (0..5).map(|_| drop_one(&mut world, 1)).collect();
        go_on_working(&mut world);
        assert_eq!((&world.started[1..], further(&world)), (&small[..3], Some(0)), "it keeps one");
        world.settle();
        assert_eq!(world.started.len(), 7);
    }
}
