"""The online endpoint on Ray Serve. `import_path: rtr_ray.distributed.online.application:build`."""
